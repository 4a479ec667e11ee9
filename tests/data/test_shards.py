"""Shards: what is written, in which order it is read, and what happens to the damaged."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from file_server import FileServer
from quiet import QUIET
from wsss_afa import shard, train
from wsss_afa.data import shards
from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.data.shard_writer import write_shards
from wsss_afa.data.shards import ShardSet, StreamingDataModule, WindowOrder, read_manifest
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.errors import UserError

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:GPU available but not used")]
SETTINGS = {"batch_size": 4, "crop_size": 24, "scale": (1.0, 1.0), "window": 2, "seed": 5}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """23 scenes in 6 shards, and 5 with masks in 2."""
    out = tmp_path_factory.mktemp("scenes") / "out"
    val = SyntheticScenes(5, 32, split="val", with_mask=True)
    write_shards({"train": SyntheticScenes(23, 32), "val": val}, out, 6)
    return out


@pytest.fixture
def copy(scenes, tmp_path):
    """A copy to damage."""
    shards._read_index.cache_clear()
    return shutil.copytree(scenes, tmp_path / "copy")


@pytest.fixture
def photos(tmp_path):
    """Photos as one has them: JPEG, nested, a dot in the name, one that lies on its side, and masks."""
    rng = np.random.default_rng(0)
    for k in range(12):
        place, split = ("cat", "dog", "background")[k % 3], "train" if k < 9 else "val"
        path = tmp_path / "photos" / "images" / split / place / f"p.{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if k in (4, 10) else 1
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(path, exif=exif)
        if split == "val":
            path = tmp_path / "photos" / "masks" / split / place / f"p.{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((30, 20) if k == 10 else (20, 30), (1, 2, 0)[k % 3], np.uint8)).save(path)
    return tmp_path / "photos"


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
        order = [[sample["name"] for sample in source].index(sample["name"]) for sample in back]
        assert sorted(order) == list(range(len(source)))
        assert split == "train" or order == sorted(order)
        np.testing.assert_array_equal(back.labels, source.labels[order])
        assert list(manifest.splits[split].tag_counts.values()) == source.labels.sum(0).tolist()
        for sample, position in zip(back, order, strict=True):
            assert sample.keys() == source[position].keys()
            for key, value in sample.items():
                np.testing.assert_array_equal(value, source[position][key])


def test_another_library_reads_the_same_bytes_and_tags(photos, tmp_path):
    source = TaggedFolder(read_folder(photos), "train")
    write_shards({"train": source}, tmp_path / "out", 3)
    read = {}
    for path in (tmp_path / "out" / "train").glob("*.tar"):
        with path.open("rb") as file:
            for sample in group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])):
                assert not [key for key in sample if "mask" in key]
                about = json.loads(sample["json"])
                read[about["name"]] = sample["jpg"], about["tags"]
    assert read == {
        sample["name"]: (path.read_bytes(), [source.class_names[tag] for tag in np.flatnonzero(tags)])
        for sample, path, tags in zip(source, source.paths, source.labels, strict=True)
    }


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
    assert (len(ShardSet(manifest, "train")), len(broken)) == (len(source) - 1, 1)
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
    joined, pixels = ShardSet(manifest, "train"), [scene["image"].sum() for part in sets for scene in part]
    assert (len(joined.shards), len(joined)) == (4, 12)
    assert sorted(sample["image"].sum() for sample in joined) == sorted(pixels)
    assert list(manifest.splits["train"].tag_counts.values()) == joined.labels.sum(0).tolist()


# In which order it is read


def draw(counts, *key):
    order = WindowOrder(counts, *key)
    return [order[position] for position in range(sum(counts))]


def test_an_epoch_shows_every_image_once_and_keeps_to_a_window():
    counts, window = [5, 5, 5, 5, 5, 5, 2], 3
    images = draw(counts, window, 1, 0)
    assert sorted(images) == list(range(32))
    met = np.repeat(np.arange(7), counts)[images].tolist()
    first, last = [met.index(s) for s in range(7)], [31 - met[::-1].index(s) for s in range(7)]
    assert max(sum(a <= p <= b for a, b in zip(first, last, strict=True)) for p in range(32)) <= window
    assert len(set(met[:10])) > 1  # shards of a window are mixed


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    whole, backwards = draw([4, 3, 5, 4], 2, 7, 2), WindowOrder([4, 3, 5, 4], 2, 7, 2)
    assert [backwards[position] for position in reversed(range(16))] == whole[::-1]
    assert whole not in (draw([4, 3, 5, 4], 2, 7, 3), draw([4, 3, 5, 4], 2, 8, 2))


def test_every_image_is_early_as_often_as_late():
    places = np.mean([np.argsort(draw([6, 6, 6, 6], 2, 0, epoch)) for epoch in range(400)], 0)
    assert abs(places - 11.5).max() < 4.5 * np.sqrt((24**2 - 1) / 12 / 400)


def test_a_position_is_found_at_once_in_a_billion_images():
    order = WindowOrder([10_000] * 120_000, 8, 0, 0)
    assert 0 <= order[1_199_999_999] < 1_200_000_000
    assert len(order._images) == 80_000


def batches(root, workers=0, settings=SETTINGS, **place):
    """The names and pixels that a process sees in twelve steps, and the data module."""
    data = StreamingDataModule(str(root), num_workers=workers, **settings)
    usual = {"max_steps": 12, "global_step": 0, "global_rank": 0, "world_size": 1, "limit_val_batches": 1}
    data.trainer = SimpleNamespace(**usual | place, accumulate_grad_batches=1)
    data.setup("fit")
    return [(batch["name"], batch["image"].sum().item()) for batch in data.train_dataloader()], data


def test_workers_processes_and_resuming_change_no_step(scenes):
    whole, _ = batches(scenes)
    assert len(whole) == 12
    assert batches(scenes, workers=2)[0] == whole
    assert batches(scenes, global_step=7)[0] == whole[7:]
    halves = [batches(scenes, global_rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert [a[0] + b[0] for a, b in zip(*halves, strict=True)] == [seen for seen, _ in whole]


def test_resuming_reads_nothing_of_the_past(scenes, monkeypatch):
    read, fetch = [], shards.fetch
    monkeypatch.setattr(shards, "fetch", lambda *place, **hint: read.append(place) or fetch(*place, **hint))
    shards._read_index.cache_clear()
    assert len(batches(scenes, global_step=11)[0]) == 1
    images = [stop - start for _, start, stop in (place for place in read if len(place) == 3)]
    assert len(images) == 4
    assert max(images) < 5_000
    assert len(read) - len(images) <= SETTINGS["window"] * 2 + 1  # indices of two windows, and the manifest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_memory_does_not_grow_with_the_images_read(tmp_path):
    """All images are read twice, from more shards than indices are kept."""
    write_shards({"train": SyntheticScenes(600, 64)}, tmp_path / "out", 50)
    images, used = ShardSet(read_manifest(str(tmp_path / "out")), "train"), []
    for epoch in range(2):
        assert len({images[image]["name"] for image in draw([12] * 50, 8, 0, epoch)}) == 600
        used.append(int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
    assert used[1] - used[0] < 2_000  # kB; the decoded images have 7 200


# The damaged


def test_a_damaged_shard_is_named_with_its_remedy(copy, capsys):
    """One bit of one image: sizes and decoding would not tell."""
    row = read_manifest(str(copy)).splits["train"].shards[2]
    name, _, (file, offset, size, _), _ = json.loads((copy / "train" / "00002.json").read_text())[1]
    content = bytearray((copy / row.file).read_bytes())
    content[offset + size // 2] ^= 1
    (copy / row.file).write_bytes(content)
    line = f"{copy}/train/00002.tar is damaged at {file}: copy it anew \\(its sha256 is in manifest.json\\)"
    with pytest.raises(UserError, match=f"{line}, or set data.skip_broken=true to go on without it"):
        batches(copy)
    seen, data = batches(copy, settings=SETTINGS | {"skip_broken": True})
    assert len(seen) == 12
    assert all(name not in names for names, _ in seen)
    data.teardown("fit")
    assert re.search(f"skipped   1 unreadable images:\n  {line}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("00001.tar", b"", r"has 0 bytes, need \d+: copy it anew"),
        ("00001.tar", None, r"has 0 bytes, need \d+: copy it anew"),
        ("00003.json", b"[]", "is damaged: copy it anew"),
        ("00003.json", None, "is missing: copy it anew"),
    ],
)
def test_missing_and_cut_files(file, content, problem, copy):
    path = copy / "train" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} {problem}"):
        batches(copy)
    seen, data = batches(copy, settings=SETTINGS | {"skip_broken": True})
    assert (len(seen), len(data._broken) > 0) == (12, True)


def test_folders_that_are_no_shards(tmp_path, copy):
    with pytest.raises(UserError, match=r"nowhere/manifest\.json is missing: set data\.root to a folder"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="Protocol not known: tape"):
        read_manifest("tape://nowhere")
    with pytest.raises(UserError, match=r"data\.window is 0"):
        batches(copy, settings={"window": 0})
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["splits"]["val"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"has the splits train, need 'val': .*trainer\.limit_val_batches=0"):
        batches(copy)
    assert len(batches(copy, limit_val_batches=0)[0]) == 12
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is no manifest of shards"):
        read_manifest(str(copy))


# From a server


@pytest.fixture
def server(scenes):
    pytest.importorskip("aiohttp", reason="fsspec reads http through aiohttp")
    with FileServer() as server:
        for path in scenes.rglob("*.*"):
            server.files[path.relative_to(scenes).as_posix()] = path.read_bytes()
        yield server


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_gives_what_the_disk_does(workers, scenes, server):
    assert batches(server.url, workers)[0] == batches(scenes)[0]


def test_a_server_must_give_parts_and_may_fail_twice(server, monkeypatch):
    waits, images = [], ShardSet(read_manifest(server.url), "train")
    assert images.labels.shape == (23, 6)
    server.faults = ["no ranges"]
    with pytest.raises(UserError, match="came whole, need parts of it: use a server that answers ranges"):
        images[0]
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    server.faults = [503, 503]
    assert images[0]["image"].shape == (32, 32, 3)
    assert waits == list(shards.RETRY_AFTER)
    server.faults = [503, 503, 503]
    with pytest.raises(UserError, match=r"\.tar cannot be read \(ClientResponseError: 503"):
        images[0]


# The programs


def test_from_scenes_to_shards_to_a_trained_step(tmp_path, monkeypatch, capsys):
    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program.__name__, *arguments, f"hydra.run.dir={tmp_path}/run"])
        program.main()
        return capsys.readouterr().out

    out = tmp_path / "out"
    small = ["data=synthetic", "data.image_size=32", "data.train_images=16", "data.val_images=2"]
    said = run(shard, *small, f"out={out}", "shards=4")
    assert re.search(r"16 images in 4 shards, .*\n.* 2 images in 1 shards", said)
    said = run(
        train, "+experiment=synthetic", "data=streaming", f"data.root={out}", "data.crop_size=32",
        "data.num_workers=0", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=2",
        "trainer.accelerator=cpu", "trainer.devices=1",
    )  # fmt: skip
    assert "16 train in 4 shards; 2 val in 1 shards; 6 classes" in said
    with pytest.raises(SystemExit, match=r"splits=\['test'\], need train, val or both"):
        run(shard, *small, f"out={tmp_path}/other", "splits=[test]")
