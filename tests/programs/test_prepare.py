"""From archives to a folder that trains, with tiny archives in the layouts of VOC and COCO."""

import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image
from torchvision.datasets import voc as torchvision_voc

from file_server import FileServer
from wsss_afa import prepare
from wsss_afa.data.coco import COCO_CLASSES, read_category_ids
from wsss_afa.files import CONFIG_DIR
from wsss_afa.programs import prepare as work

SHARED = Path(__file__).parents[3] / "shared"
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in GAPS]
TRAINVAL = "VOCtrainval_11-May-2012.tar"
QUICK = ["num_workers=0", "wait=0.01", "attempts=3", "timeout=5"]

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the program with overrides; returns exit code, what it printed, and the line of an error."""

    def program(*overrides):
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, overrides)])
        code, error = 0, ""
        try:
            prepare.main()
        except SystemExit as stop:
            code, error = 1, str(stop.code)
        return code, capsys.readouterr().out, error

    return program


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with FileServer() as running:
        yield running


def picture(size=(24, 16), kind="JPEG", value=90, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, kind)
    return file.getvalue()


def voc_files():
    """Three images, a list each; one of them is under a tag that comes with the package."""
    base, files = "VOCdevkit/VOC2012", {}
    for name, tag in (("2007_000032", "aeroplane"), ("b", "dog"), ("c", "cat")):
        xml = f"<annotation><object><name>{tag}</name></object></annotation>"
        files[f"{base}/JPEGImages/{name}.jpg"] = picture()
        files[f"{base}/Annotations/{name}.xml"] = xml.encode()
        files[f"{base}/SegmentationClass/{name}.png"] = picture(kind="PNG", value=12, mode="L")
    for split, names in {"train": "b", "val": "c", "train_aug": "2007_000032\nb"}.items():
        files[f"{base}/ImageSets/Segmentation/{split}.txt"] = f"{names}\n".encode()
    return files


def voc_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def coco_zips(year):
    """Images 1 to 3 of each split; the third has no annotation."""
    categories = [
        {"id": i, "name": name, "supercategory": "x"} for i, name in zip(IDS, COCO_CLASSES, strict=True)
    ]
    square = [2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0]
    annotations = [
        {"image_id": 1, "category_id": 18, "iscrowd": 0, "segmentation": [square]},
        {"image_id": 2, "category_id": 90, "iscrowd": 0, "segmentation": [square]},
        {"image_id": 2, "category_id": 1, "iscrowd": 0, "segmentation": [[12.0, 2, 20, 2, 20, 8, 12, 8]]},
    ]
    zips, instances = {}, {}
    for split in ("train", "val"):
        names = [f"{i:012d}.jpg" for i in (1, 2, 3)]
        images = [{"id": i, "file_name": name, "height": 16, "width": 24} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
        instances[f"annotations/instances_{split}{year}.json"] = json.dumps(content).encode()
        zips[f"{split}{year}.zip"] = {f"{split}{year}/{name}": picture() for name in names}
    zips[f"annotations_trainval{year}.zip"] = instances
    return {name: zip_bytes(files) for name, files in zips.items()}


def zip_bytes(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


def known(key, content):
    """Overrides that expect these bytes instead of the official ones."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return [f"dataset.files.{key}.size={len(content)}", f"dataset.files.{key}.checksum=md5:{digest}"]


def voc_overrides(content, root):
    counts = ["dataset.images=3", "dataset.splits={train: 1, train_aug: 2, val: 1}"]
    return [*QUICK, "dataset=voc2012", f"root={root}", *counts, *known("trainval", content)]


def coco_overrides(year, zips, root):
    counts = ["dataset.images=6", "dataset.splits={train: 2, val: 2}", f"cache_dir={root.parent / 'cache'}"]
    keys = zip(("train", "val", "annotations"), zips.values(), strict=True)
    files = [override for key, content in keys for override in known(key, content)]
    return [*QUICK, f"dataset=coco{year}", f"root={root}", *counts, *files]


def state(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def set_up(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose(
            "train", ["data.num_workers=0", "data.batch_size=2", "data.crop_size=32", *overrides]
        )
    data = instantiate(cfg.data)
    data.setup("fit")
    return data


def test_voc_from_a_server_to_a_data_module(server, run, tmp_path):
    server.files[TRAINVAL] = content = voc_tar(voc_files())
    server.faults = [503, "cut 2000"]
    root = tmp_path / "data" / "VOC2012"
    overrides = [*voc_overrides(content, root), f"base_url={server.url}"]
    code, out, error = run(*overrides)
    assert (code, error) == (0, "")
    assert server.ranges == [None, None, "bytes=2000-"]
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["dataset"] == "voc2012"
    assert re.fullmatch(r"wsss-afa \d+\.\d+\.\d+", manifest["library"])
    assert manifest["archives"][TRAINVAL] == {
        "url": f"{server.url}/{TRAINVAL}",
        "bytes": len(content),
        "checksum": f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}",
    }
    assert {name: (s["images"], s["masks"]) for name, s in manifest["splits"].items()} == {
        "train": (1, 1),
        "train_aug": (2, 0),
        "val": (1, 1),
    }
    tags = {name: {tag for tag, n in s["tags"].items() if n} for name, s in manifest["splits"].items()}
    assert tags == {"train": {"dog"}, "train_aug": {"aeroplane", "person", "dog"}, "val": {"cat"}}
    assert f"wsss-afa train +experiment=voc data.root={root}" in out
    data = set_up("+experiment=voc", f"data.root={root}")
    batch = next(iter(data.val_dataloader()))
    assert batch["name"] == ["c"]
    assert batch["mask"].unique().tolist() == [12]

    before = state(tmp_path)
    code, out, _ = run(*overrides)
    assert (code, out) == (0, f"{root} holds voc2012, 3 images: nothing to do\n")
    assert state(tmp_path) == before
    assert len(server.ranges) == 3


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_from_archives_that_are_there(year, run, tmp_path):
    zips, folder, root = coco_zips(year), tmp_path / "archives", tmp_path / "coco"
    folder.mkdir()
    for name, content in zips.items():
        (folder / name).write_bytes(content)
    code, out, error = run(*coco_overrides(year, zips, root), f"archives={folder}", "num_workers=1")
    assert (code, error) == (0, "")
    manifest = json.loads((root / "manifest.json").read_text())
    assert set(manifest["archives"]) == set(zips)
    assert manifest["images"] == 6
    splits = manifest["splits"]
    assert [(s["images"], s["masks"]) for s in splits.values()] == [(2, 0), (2, 2)]
    assert {tag for tag, n in splits["val"]["tags"].items() if n} == {"dog", "toothbrush", "person"}
    assert [c["category_id"] for c in manifest["classes"]] == IDS
    assert [c["mask_value"] for c in manifest["classes"]] == list(range(1, 81))
    assert "80 → 90 toothbrush" in out
    assert "17 → 18 dog" in out
    masks = sorted((tmp_path / "cache").rglob("*.png"))
    assert [path.name for path in masks] == ["000000000001.png", "000000000002.png"]
    with Image.open(masks[0]) as mask:
        assert np.unique(np.asarray(mask)).tolist() == [0, IDS.index(18) + 1]
    data = set_up("+experiment=coco", f"data.root={root}", f"data.cache_dir={tmp_path / 'cache'}")
    assert [len(batch["name"]) for batch in data.val_dataloader()] == [1, 1]
    assert data.train_tags.sum(0).nonzero()[0].tolist() == [0, IDS.index(18), 79]

    before = state(tmp_path)
    assert "nothing to do" in run(f"dataset=coco{year}", f"root={root}")[1]
    assert state(tmp_path) == before


def test_an_interrupted_run_goes_on(server, run, tmp_path, monkeypatch):
    """Unpacked, then stopped before the manifest: the next run checks what is there and ends the work."""
    server.files[TRAINVAL] = content = voc_tar(voc_files())
    root = tmp_path / "VOC2012"
    overrides = [*voc_overrides(content, root), f"base_url={server.url}"]
    with monkeypatch.context() as patch:
        patch.setattr(work, "survey", lambda *_: sys.exit(130))
        assert run(*overrides)[0] == 1
    assert not (root / "manifest.json").exists()
    before = state(root)
    assert run(*overrides)[0] == 0
    after = state(root)
    assert set(after) - set(before) == {root / "manifest.json"}
    assert before.items() <= after.items()
    assert len(server.ranges) == 1


def broken_voc(**changes):
    files = voc_files()
    base = "VOCdevkit/VOC2012"
    for name, content in changes.items():
        path = f"{base}/{name}"
        files.pop(path) if content is None else files.update({path: content})
    return voc_tar(files)


def evil_tar():
    return voc_tar(voc_files() | {"../evil": b"x"})


MISTAKES = {
    "image missing": (broken_voc(**{"JPEGImages/b.jpg": None}), [], r"has 2 images, need 3"),
    "image broken": (broken_voc(**{"JPEGImages/b.jpg": b"x"}), [], r"b\.jpg cannot be read"),
    "mask missing": (broken_voc(**{"SegmentationClass/c.png": None}), [], r"lacks 1 of the 1 files"),
    "mask of another size": (
        broken_voc(**{"SegmentationClass/c.png": picture((9, 9), "PNG", 0, "L")}), [], "replace one of them",
    ),
    "mask of other labels": (
        broken_voc(**{"SegmentationClass/c.png": picture((24, 16), "PNG", 77, "L")}), [], "has label 77",
    ),
    "no tags": (broken_voc(**{"Annotations/b.xml": None}), [], r"b\.xml gives no tags"),
    "other count": (broken_voc(), ["dataset.splits.val=2"], r"has 1 images in val, need 2"),
    "evil archive": (evil_tar(), [], r"has the path '\.\./evil'"),
    "no archive": (b"<html>", [], "no tar or zip"),
    "other bytes": (broken_voc(), ["dataset.files.trainval.checksum=md5:0"], "sent other bytes"),
    "other length": (broken_voc(), ["dataset.files.trainval.size=7"], r"offers \d+ bytes, need 7"),
    "no such file": (broken_voc(), ["base_url=${oc.env:URL}/nowhere"], "answered 404"),
    "unknown data set": (broken_voc(), ["dataset=voc2099"], "voc2099"),
    "misspelt": (broken_voc(), ["rooot=x"], "rooot is no setting of this run; did you mean root"),
    "archives missing": (broken_voc(), ["archives=nowhere"], rf"archives=nowhere lacks {TRAINVAL}"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_manifest(mistake, server, run, tmp_path, monkeypatch):
    content, more, pattern = MISTAKES[mistake]
    server.files[TRAINVAL] = content
    monkeypatch.setenv("URL", server.url)
    overrides = [*voc_overrides(content, tmp_path / "VOC2012"), f"base_url={server.url}", *more]
    code, _, error = run(*overrides)
    assert code == 1
    assert error.startswith("error: ")
    assert "\n" not in error
    assert re.search(pattern, error)
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.glob("VOC2012.partial"))
    assert not (tmp_path.parent / "evil").exists()


def test_the_disk_is_checked_before_the_first_byte(server, run, tmp_path, monkeypatch):
    server.files[TRAINVAL] = content = voc_tar(voc_files())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5 * len(content)))
    code, _, error = run(*voc_overrides(content, tmp_path / "VOC2012"), f"base_url={server.url}")
    assert code == 1
    assert "GB free, need" in error
    assert not server.ranges
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(server, run, tmp_path):
    server.files[TRAINVAL] = content = voc_tar(voc_files())
    root = tmp_path / "root"
    root.mkdir()
    (root / "thesis.txt").write_text("dear")
    overrides = [*voc_overrides(content, root), f"base_url={server.url}"]
    assert "need a new folder" in run(*overrides)[2]
    assert [path.name for path in root.iterdir()] == ["thesis.txt"]
    (root / "manifest.json").write_text('{"dataset": "coco2014", "images": 0}')
    assert "holds coco2014, need a folder for voc2012" in run(*overrides)[2]
    (root / "manifest.json").write_text("{")
    assert "is no manifest" in run(*overrides)[2]


def test_images_that_have_gone_since_are_noticed(server, run, tmp_path):
    server.files[TRAINVAL] = content = voc_tar(voc_files())
    root = tmp_path / "VOC2012"
    overrides = [*voc_overrides(content, root), f"base_url={server.url}"]
    assert run(*overrides)[0] == 0
    (root / "JPEGImages" / "b.jpg").unlink()
    code, _, error = run(*overrides)
    assert code == 1
    assert "has 2 images, its manifest.json says 3" in error


@pytest.mark.parametrize("name", ["voc2012", "coco2014", "coco2017"])
def test_official_values(name):
    """Against torchvision, and what the paper and COCO's site say of the sets."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("prepare", [f"dataset={name}"])
        root = hydra.compose("train", [f"+experiment={cfg.dataset.experiment}"]).data.root
    assert cfg.root == root
    counts = {
        "voc2012": ({"train": 1464, "train_aug": 10582, "val": 1449}, 17125),
        "coco2014": ({"train": 82081, "val": 40137}, 82783 + 40504),
        "coco2017": ({"train": 117266, "val": 4952}, 118287 + 5000),
    }
    assert (dict(cfg.dataset.splits), cfg.dataset.images) == counts[name]
    if name == "voc2012":
        there = torchvision_voc.DATASET_YEAR_DICT["2012"]
        file = cfg.dataset.files.trainval
        assert (file.url, file.checksum) == (there["url"], f"md5:{there['md5']}")
        assert cfg.dataset.folder == there["base_dir"]
    for file in cfg.dataset.files.values():
        assert re.fullmatch(r"md5:[0-9a-f]{32}", file.checksum)
        assert file.size > 2e8


def test_a_mistake_is_the_last_line_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run("dataset=voc2012", f"root={tmp_path}/x", "archives=nowhere")
    assert code == 1
    assert error.splitlines()[-1].startswith("error: archives=nowhere lacks")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (SHARED / "data" / "coco_mini").is_dir(), reason="real photographs are not there")
def test_category_ids_of_the_original_file():
    ids = read_category_ids(SHARED / "data" / "coco_mini" / "annotations" / "instances_val2017.json")
    assert tuple(ids) == COCO_CLASSES
    assert list(ids.values()) == IDS
