"""Shards: what is written, in which order it is read, and what happens to the damaged."""

import json
import re
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from wsss_afa import shard, train
from wsss_afa.data import shards
from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.data.shard_writer import write_shards
from wsss_afa.data.shards import ShardSet, WindowOrder, read_manifest
from wsss_afa.data.streaming import StreamingDataModule
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.errors import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:GPU available but not used", "ignore:.*LeafSpec",
    "ignore:Experiment logs directory", "ignore:The number of training batches",
)  # fmt: skip
SETTINGS = {"batch_size": 4, "crop_size": 24, "scale": (1.0, 1.0), "window": 2, "seed": 5}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """23 scenes in 6 shards, and 5 with masks in 2."""
    out = tmp_path_factory.mktemp("scenes") / "out"
    sets = {
        "train": SyntheticScenes(23, 32),
        "val": SyntheticScenes(5, 32, split="val", with_mask=True),
    }
    write_shards(sets, out, 6)
    return out


@pytest.fixture
def copy(scenes, tmp_path):
    """A copy to damage."""
    shards._read_index.cache_clear()
    for path in scenes.rglob("*.*"):
        target = tmp_path / "copy" / path.relative_to(scenes)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


@pytest.fixture
def photos(tmp_path):
    """Photos as one has them: JPEG, nested, a dot in the name, one that lies on its side, and masks."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for k in range(12):
        folder, split = ("cat", "dog", "background")[k % 3], "train" if k < 9 else "val"
        image = Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if k in (4, 10) else 1
        for part in ("images", "masks") if split == "val" else ("images",):
            (root / part / split / folder).mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / split / folder / f"p.{k}.jpg", exif=exif)
        if split == "val":
            mask = Image.fromarray(np.full((30, 20) if k == 10 else (20, 30), (1, 2, 0)[k % 3], np.uint8))
            mask.save(root / "masks" / split / folder / f"p.{k}.png")
    return root


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])


def names(loader):
    return [name for batch in loader for name in batch["name"]]


# What is written


def test_a_folder_comes_back_as_it_was(photos, tmp_path):
    content = read_folder(photos)
    sets = {"train": TaggedFolder(content, "train"), "val": TaggedFolder(content, "val", with_mask=True)}
    write_shards(sets, tmp_path / "out", 2)
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest.class_names == content.class_names
    assert [split.has_masks for split in manifest.splits.values()] == [False, True]
    for split, source in sets.items():
        back = ShardSet(manifest, split)
        assert len(back) == len(source)
        order = [[sample["name"] for sample in source].index(sample["name"]) for sample in back]
        assert sorted(order) == list(range(len(source)))
        assert split == "train" or order == sorted(order)
        np.testing.assert_array_equal(back.labels, source.labels[order])
        for image, position in enumerate(order):
            same(back[image], source[position])
    sizes = {sample["image"].shape for sample in ShardSet(manifest, "val")}
    assert sizes == {(20, 30, 3), (30, 20, 3)}  # one was turned upright


def test_another_library_reads_the_same_bytes_and_tags(photos, tmp_path):
    source = TaggedFolder(read_folder(photos), "train")
    write_shards({"train": source}, tmp_path / "out", 3)
    read = []
    for path in (tmp_path / "out" / "train").glob("*.tar"):
        with path.open("rb") as file:
            read += group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
    files = {sample["name"]: path.read_bytes() for sample, path in zip(source, source.paths, strict=True)}
    tags = {sample["name"]: np.flatnonzero(sample["class_label"]) for sample in source}
    assert len(read) == len(files)
    for sample in read:
        about = json.loads(sample["json"])
        assert sample["jpg"] == files[about["name"]]
        assert about["tags"] == [source.class_names[tag] for tag in tags[about["name"]]]


def test_the_index_agrees_with_the_tar_and_the_manifest_with_both(scenes):
    manifest = read_manifest(str(scenes))
    assert [split.has_masks for split in manifest.splits.values()] == [False, True]
    for split in manifest.splits.values():
        for row in split.shards:
            with tarfile.open(scenes / row.file) as tar:
                members = {member.name: (member.offset_data, member.size) for member in tar}
            index = json.loads((scenes / row.file).with_suffix(".json").read_text())
            found = [part for _, _, image, mask in index for part in (image, mask) if part]
            assert row.images == len(index)
            assert row.bytes == (scenes / row.file).stat().st_size
            assert {file: (offset, size) for file, offset, size, _ in found}.items() <= members.items()
    labels = ShardSet(manifest, "train").labels
    assert list(manifest.splits["train"].tag_counts.values()) == labels.sum(0).tolist()
    assert [len(split.shards) for split in manifest.splits.values()] == [6, 2]


def test_training_shards_hold_no_mask(scenes):
    for path in (scenes / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert not [name for name in tar.getnames() if "mask" in name]
    assert all("mask" not in sample for sample in ShardSet(read_manifest(str(scenes)), "train"))


def test_processes_write_what_one_would(scenes, tmp_path):
    write_shards({"train": SyntheticScenes(23, 32)}, tmp_path / "out", 6, num_workers=2)
    for path in (tmp_path / "out" / "train").iterdir():
        assert path.read_bytes() == (scenes / "train" / path.name).read_bytes()


def test_a_broken_photo_leaves_nothing_or_is_left_out(photos, tmp_path):
    source = TaggedFolder(read_folder(photos), "train")
    source.paths[3].write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=re.escape(f"{source.paths[3]} cannot be read as an image")):
        write_shards({"train": source}, out, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    manifest, broken = write_shards({"train": source}, out, 3, skip_broken=True)
    assert len(ShardSet(manifest, "train")) == len(source) - 1
    assert len(broken) == 1
    with pytest.raises(UserError, match="is there already, need a new folder"):
        write_shards({"train": source}, out, 3)
    with pytest.raises(UserError, match="shards=10, need 1 to 9"):
        write_shards({"train": source}, tmp_path / "other", 10)


GUIDE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.mark.skipif(not GUIDE.exists(), reason="no docs/ beside the tests")
def test_parts_are_joined_as_the_guide_says(tmp_path, monkeypatch):
    sets = [SyntheticScenes(length, 32, seed=length) for length in (7, 5)]
    for scenes, part in zip(sets, ("a", "b"), strict=True):
        write_shards({"train": scenes}, tmp_path / "shards" / part, 2)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[1], {})  # noqa: S102
    manifest = read_manifest("shards")
    joined = ShardSet(manifest, "train")
    assert (len(joined.shards), len(joined)) == (4, 12)
    assert sorted(sample["image"].sum() for sample in joined) == sorted(
        sample["image"].sum() for scenes in sets for sample in scenes
    )
    assert list(manifest.splits["train"].tag_counts.values()) == joined.labels.sum(0).tolist()


# In which order it is read


def test_an_epoch_shows_every_image_once_and_keeps_to_a_window():
    counts, window = [5, 5, 5, 5, 5, 5, 2], 3
    order = WindowOrder(counts, window, seed=1, epoch=0)
    images = [order[position] for position in range(32)]
    assert sorted(images) == list(range(32))
    owner = np.repeat(np.arange(7), counts)
    met = [owner[image] for image in images]
    first = {shard: met.index(shard) for shard in range(7)}
    last = {shard: len(met) - 1 - met[::-1].index(shard) for shard in range(7)}
    open_at = [sum(first[s] <= p <= last[s] for s in range(7)) for p in range(32)]
    assert max(open_at) <= window
    assert len(set(met[:10])) > 1  # shards of a window are mixed


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    counts = [4, 3, 5, 4]
    make = partial(WindowOrder, counts, 2)
    whole = [make(7, 2)[position] for position in range(16)]
    backwards = make(7, 2)
    assert [backwards[position] for position in reversed(range(16))] == whole[::-1]
    others = [[make(*key)[position] for position in range(16)] for key in ((7, 3), (8, 2))]
    assert all(other != whole for other in others)


def test_every_image_is_early_as_often_as_late():
    places = np.zeros(24)
    for epoch in range(400):
        order = WindowOrder([6, 6, 6, 6], 2, 0, epoch)
        places[[order[position] for position in range(24)]] += np.arange(24)
    mean, spread = 11.5, np.sqrt((24**2 - 1) / 12 / 400)
    assert abs(places / 400 - mean).max() < 4.5 * spread


def test_a_position_is_found_at_once_in_a_billion_images():
    order = WindowOrder([10_000] * 120_000, 8, 0, 0)
    assert 0 <= order[1_199_999_999] < 1_200_000_000
    assert len(order._images) == 80_000


class Place:
    """Stands for a Trainer."""

    limit_val_batches, accumulate_grad_batches = 1.0, 1

    def __init__(self, max_steps=12, global_step=0, global_rank=0, world_size=1):
        self.max_steps, self.global_step = max_steps, global_step
        self.global_rank, self.world_size = global_rank, world_size


def batches(root, workers=0, **place):
    data = StreamingDataModule(str(root), num_workers=workers, **SETTINGS)
    data.trainer = Place(**place)
    data.setup("fit")
    return [(batch["name"], batch["image"].sum().item()) for batch in data.train_dataloader()]


def test_workers_processes_and_resuming_change_no_step(scenes):
    whole = batches(scenes)
    assert len(whole) == 12
    assert batches(scenes, workers=2) == whole
    assert batches(scenes, global_step=7) == whole[7:]
    halves = [batches(scenes, global_rank=rank, world_size=2) for rank in (0, 1)]
    shared = [a[0] + b[0] for a, b in zip(*halves, strict=True)]
    assert shared == [seen for seen, _ in whole]


def test_resuming_reads_nothing_of_the_past(scenes, monkeypatch):
    read = []
    fetch = shards.fetch

    def recorded(url, *place, **hint):
        read.append((url, *place))
        return fetch(url, *place, **hint)

    monkeypatch.setattr(shards, "fetch", recorded)
    shards._read_index.cache_clear()
    rest = batches(scenes, global_step=11)
    images = [place for place in read if len(place) == 3]
    assert len(rest) == 1
    assert len(images) == 4
    assert len(read) - len(images) <= SETTINGS["window"] * 2  # indices of at most two windows
    assert all(stop - start < 5_000 for _, start, stop in images)


class Recorder(L.LightningModule):
    """Remembers what it is fed."""

    def __init__(self, on_step=lambda: None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.on_step, self.seen = on_step, []

    def training_step(self, batch, index):
        self.seen += batch["name"]
        self.on_step()
        return self.weight * batch["image"].mean()

    def validation_step(self, batch, index):
        raise AssertionError("these runs do not validate")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, steps, module, **settings):
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, max_steps=steps, use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data, **settings)
    return trainer


def test_a_resumed_run_sees_what_the_unbroken_one_would(scenes, tmp_path):
    make = partial(StreamingDataModule, str(scenes), **SETTINGS)
    fit(make(), 10, whole := Recorder())
    trainer = fit(make(), 4, first := Recorder())
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    fit(make(), 10, rest := Recorder(), ckpt_path=tmp_path / "cut.ckpt", weights_only=True)
    assert first.seen + rest.seen == whole.seen


class Repeated:
    """As many scenes as asked for, a hundred of them different, from files."""

    def __init__(self, length, folder):
        scenes = SyntheticScenes(100, 64)
        self.class_names, self._samples = scenes.class_names, [scenes[k] for k in range(100)]
        files = [folder / f"{k}.png" for k in range(100)]
        for sample, file in zip(self._samples, files, strict=True):
            Image.fromarray(sample["image"]).save(file)
        self.paths = [files[k % 100] for k in range(length)]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {**self._samples[index % 100], "name": f"{index:05d}"}


def memory():
    """Private memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_ten_thousand_images_train_in_bounded_memory(tmp_path):
    manifest, _ = write_shards({"train": Repeated(10_000, tmp_path)}, tmp_path / "out", 40)
    assert sum(row.bytes for row in manifest.splits["train"].shards) > 90e6
    data = StreamingDataModule(str(tmp_path / "out"), 4, batch_size=16, crop_size=64, scale=(1.0, 1.0))
    used = []
    fit(data, 625, module := Recorder(lambda: used.append(memory())))
    assert len(set(module.seen)) == 10_000
    assert max(used) - used[100] < 20


# The damaged


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def one_pass(root, **settings):
    data = StreamingDataModule(str(root), **{**SETTINGS, **settings})
    data.trainer = Place(max_steps=6)
    data.setup("fit")
    return data, names(data.train_dataloader())


def test_a_damaged_shard_is_named_with_its_remedy(copy, capsys):
    """One bit of one image: sizes and decoding would not tell."""
    row = read_manifest(str(copy)).splits["train"].shards[2]
    name, _, (file, offset, size, _), _ = json.loads((copy / "train" / "00002.json").read_text())[1]
    flip(copy / row.file, offset + size // 2)
    line = f"{copy}/train/00002.tar is damaged at {file}: copy it anew \\(its sha256 is in manifest.json\\)"
    with pytest.raises(UserError, match=f"{line}, or set data.skip_broken=true to go on without it"):
        one_pass(copy)
    data, seen = one_pass(copy, skip_broken=True)
    assert len(seen) == 24
    assert name not in seen
    data.teardown("fit")
    assert re.search(f"skipped   1 unreadable images:\n  {line}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "00001.tar").unlink(), r"00001\.tar has 0 bytes, need \d+: copy it anew"),
        (
            lambda folder: (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes()[:2000]),
            r"00001\.tar has 2000 bytes, need \d+: copy it anew",
        ),
        (lambda folder: flip(folder / "00003.json", 20), r"00003\.json is damaged: copy it anew"),
        (lambda folder: (folder / "00003.json").unlink(), r"00003\.json is missing: copy it anew"),
    ],
)
def test_missing_and_cut_files(copy, damage, problem):
    damage(copy / "train")
    with pytest.raises(UserError, match=problem):
        one_pass(copy)
    data, seen = one_pass(copy, skip_broken=True)
    assert (len(seen), len(data._broken) > 0) == (24, True)


def test_folders_that_are_no_shards(tmp_path, copy, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere/manifest\.json is missing: set data\.root to a folder"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Protocol not known: tape"):
        read_manifest("tape://nowhere")
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["splits"]["val"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"has the splits train, need 'val': .*trainer\.limit_val_batches=0"):
        one_pass(copy)
    monkeypatch.setattr(Place, "limit_val_batches", 0)
    assert len(one_pass(copy)[1]) == 24
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is no manifest of shards"):
        read_manifest(str(copy))


def test_a_window_has_shards(scenes):
    with pytest.raises(UserError, match=r"data\.window is 0"):
        StreamingDataModule(str(scenes), window=0)
    with pytest.raises(TypeError, match="balanced"):
        StreamingDataModule(str(scenes), balanced=True)


# From a server


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves parts of files, as stores do."""

    protocol_version, ranges = "HTTP/1.1", True

    def do_GET(self):
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file():
            return self.send_error(404)
        content, status = path.read_bytes(), 200
        if asked and self.ranges:
            start, stop = map(int, asked.removeprefix("bytes=").split("-"))
            content, status = content[start : stop + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, format, *values):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(folder, ranges=True):
        kind = type("Handler", (RangeHandler,), {"ranges": ranges})
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_gives_what_the_disk_does(scenes, serve, workers):
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    assert batches(serve(scenes), workers) == batches(scenes)


def test_a_server_must_give_parts(scenes, serve):
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    with pytest.raises(UserError, match="came whole, need parts of it: use a server that answers ranges"):
        batches(serve(scenes, ranges=False))


def test_a_failing_store_is_asked_again(scenes, monkeypatch):
    waits, tries = [], []

    class Store:
        def cat_file(self, path, start, end):
            tries.append(path)
            if path == "s3://x/dead" or len(tries) < 3:
                raise ConnectionResetError("reset")
            return b"content"

    monkeypatch.setattr(shards, "url_to_fs", lambda url: (Store(), url))
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    assert shards.fetch("s3://x/y") == b"content"
    assert waits == list(shards.RETRY_AFTER)
    with pytest.raises(UserError, match=r"s3://x/dead cannot be read \(ConnectionResetError: reset\)"):
        shards.fetch("s3://x/dead")


# The programs


def test_from_scenes_to_shards_to_a_trained_step(tmp_path, monkeypatch, capsys):
    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program.__name__, *arguments, f"hydra.run.dir={tmp_path}/run"])
        program.main()
        return capsys.readouterr().out

    out = tmp_path / "out"
    small = ["data.image_size=32", "data.train_images=16", "data.val_images=2"]
    said = run(shard, "data=synthetic", *small, f"out={out}", "shards=4")
    assert "16 images in 4 shards" in said
    assert "2 images in 1 shards" in said
    said = run(
        train, "+experiment=synthetic", "data=streaming", f"data.root={out}", "data.crop_size=32",
        "data.num_workers=0", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=2",
        "trainer.accelerator=cpu", "trainer.devices=1",
    )  # fmt: skip
    assert "16 train in 4 shards; 2 val in 1 shards; 6 classes" in said
    with pytest.raises(SystemExit, match=r"splits=\['test'\], need train, val or both"):
        run(shard, "data=synthetic", *small, f"out={tmp_path}/other", "splits=[test]")
