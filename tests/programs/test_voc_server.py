"""Results for VOC's evaluation server: the layout that it wants, and every way to miss it."""

from __future__ import annotations

import gzip
import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from released import add_toy, save_toy
from wsss_afa import voc_server
from wsss_afa.data.transforms import EvalTransform
from wsss_afa.inference.voc_results import pack, results_folder
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.reports.visualize import save_label

SIZES = {"2008_000006": (60, 80), "2008_000011": (75, 50), "2009_000001": (48, 48)}
"""Name, and height and width, of the split's images."""
PLACE = "results/VOC2012/Segmentation/comp6_test_cls"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The images of a test split in VOC's layout: no annotations, no masks."""
    folder = tmp_path_factory.mktemp("voc") / "VOC2012"
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(SIZES))
    for seed, (name, size) in enumerate(SIZES.items()):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(folder / "JPEGImages" / f"{name}.jpg")
    return folder


@pytest.fixture
def run(root, monkeypatch, capsys, tmp_path):
    """Run the program; returns its output and, if it stopped, the error."""
    add_toy(monkeypatch)

    def program(*arguments):
        own = [f"data.root={root}", "device=cpu", f"hydra.run.dir={tmp_path}/run"]
        monkeypatch.setattr(sys, "argv", ["voc_server", *own, *arguments])
        stopped = None
        try:
            voc_server.main()
        except SystemExit as stop:
            stopped = str(stop.code)
        return capsys.readouterr().out.splitlines(), stopped

    return program


def results(folder: Path) -> Path:
    """Whole results of the split, as the program lays them out; returns the folder of the PNGs."""
    for seed, (name, size) in enumerate(SIZES.items()):
        label = np.random.default_rng(seed).integers(0, 21, size, dtype=np.uint8)
        save_label(label, folder / PLACE / f"{name}.png")
    return folder / PLACE


def packed(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_results_are_what_the_server_takes(run, root, tmp_path):
    net = save_toy(tmp_path / "wetr_iter_5.pth")
    out = tmp_path / "run"
    lines, stopped = run(f"ckpt={tmp_path}/wetr_iter_5.pth", "protocol=plain")
    assert stopped is None
    archive = out / "results.tgz"
    assert lines == [f"written   {archive}", f"checked   {archive}: 3 results, nothing to mend"]
    with tarfile.open(archive, "r:gz") as tar:
        assert tar.getnames() == [f"{PLACE}/{name}.png" for name in SIZES]
        assert {(m.uid, m.gid, m.mode, m.mtime, m.uname) for m in tar} == {(0, 0, 0o644, 1325376000, "")}
        for name, (height, width) in SIZES.items():
            content = tar.extractfile(f"{PLACE}/{name}.png").read()
            assert content == (out / PLACE / f"{name}.png").read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "P", (width, height))
                assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
                label = np.asarray(image)
            with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
                normalised, _ = EvalTransform()(np.array(image))
            with torch.no_grad():
                expected = MultiScaleSegmentation()(net, normalised[None]).argmax(1)[0].numpy()
            assert len(np.unique(expected)) > 1
            assert (label != expected).mean() < 1e-3


def test_the_afa_protocol_is_the_default(run, tmp_path):
    save_toy(tmp_path / "wetr_iter_5.pth")
    lines, stopped = run(f"ckpt={tmp_path}/wetr_iter_5.pth", "protocol.long_side=64", f"out={tmp_path}/here")
    assert stopped is None
    assert lines[-1].endswith("here/results.tgz: 3 results, nothing to mend")


def test_equal_results_make_equal_archives(tmp_path):
    folder = results(tmp_path / "a")
    archives = []
    for name in ("first", "second"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        archives.append(tmp_path / f"{name}.tgz")
        pack(tmp_path / name / PLACE, results_folder("comp6", "test"), archives[-1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    assert folder.name == "comp6_test_cls"
    assert not list(tmp_path.glob("*.partial"))


def recoloured(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label)
    image.putpalette(list(range(256)) * 3)
    return image


ZEROS = np.zeros((75, 50), np.uint8)
PROBLEMS = {
    "missing": (lambda folder, png: png.unlink(), "2008_000011.png: is missing"),
    "renamed": (
        lambda folder, png: (folder / "more.png").write_bytes(png.read_bytes()),
        f"{PLACE}/more.png: is no result of this split, or lies elsewhere: remove it",
    ),
    "nested": (
        lambda folder, png: (folder / "sub").mkdir() or (folder / "sub" / png.name).write_bytes(b""),
        f"{PLACE}/sub/2008_000011.png: is no result of this split, or lies elsewhere: remove it",
    ),
    "void": (
        lambda folder, png: save_label(np.full((75, 50), 255, np.uint8), png),
        "2008_000011.png: has the value 255, need 0 to 20",
    ),
    "21 classes": (
        lambda folder, png: save_label(ZEROS + np.uint8(21), png),
        "2008_000011.png: has the value 21, need 0 to 20",
    ),
    "turned": (
        lambda folder, png: save_label(ZEROS.T.copy(), png),
        "2008_000011.png: is 75×50 pixels, its image is 50×75",
    ),
    "grey": (
        lambda folder, png: Image.fromarray(ZEROS).save(png),
        "2008_000011.png: is a PNG of mode L, need an indexed PNG",
    ),
    "coloured": (
        lambda folder, png: Image.new("RGB", (50, 75)).save(png),
        "2008_000011.png: is a PNG of mode RGB, need an indexed PNG",
    ),
    "a photograph": (
        lambda folder, png: Image.fromarray(ZEROS).save(png, format="JPEG"),
        "2008_000011.png: is a JPEG of mode L, need an indexed PNG",
    ),
    "other palette": (
        lambda folder, png: recoloured(ZEROS).save(png),
        "2008_000011.png: has another palette than VOC's",
    ),
    "cut off": (
        lambda folder, png: png.write_bytes(png.read_bytes()[:200]),
        "2008_000011.png: cannot be read (",
    ),
    "empty": (lambda folder, png: png.write_bytes(b""), "2008_000011.png: cannot be read ("),
}


@pytest.mark.parametrize("as_archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_gets_one_line(problem, as_archive, run, tmp_path):
    change, line = PROBLEMS[problem]
    folder = results(tmp_path)
    change(folder, folder / "2008_000011.png")
    path = tmp_path
    if as_archive:
        pngs = sorted(each for each in folder.rglob("*") if each.is_file())
        files = {each.relative_to(tmp_path).as_posix(): each.read_bytes() for each in pngs}
        path = packed(tmp_path / "mine.tgz", files)
    lines, stopped = run(f"check={path}")
    assert len(lines) == 1
    assert lines[0].startswith(f"problem   {line}")
    assert stopped == f"error: {path} has 1 problem: mend what is listed above"


def test_a_folder_of_nothing_but_pngs_is_checked_too(run, tmp_path):
    folder = results(tmp_path)
    assert run(f"check={folder}") == ([f"checked   {folder}: 3 results, nothing to mend"], None)
    lines, stopped = run(f"check={folder}", "split=val")
    assert lines == []
    assert "JPEGImages lacks 1449 of the 1449 files of split 'val'" in stopped


def test_archives_in_another_layout(run, tmp_path):
    folder = results(tmp_path)
    content = {name: (folder / f"{name}.png").read_bytes() for name in SIZES}
    flat = packed(tmp_path / "flat.tgz", {f"{name}.png": data for name, data in content.items()})
    lines, stopped = run(f"check={flat}")
    assert [line.split(":")[0] for line in lines] == [f"problem   {name}.png" for name in SIZES] * 2
    assert stopped.endswith("has 6 problems: mend what is listed above")
    dotted = packed(tmp_path / "dotted.tgz", {f"./{PLACE}/{n}.png": data for n, data in content.items()})
    assert run(f"check={dotted}")[1] is None


def other_archives(folder: Path) -> dict[str, tuple[Path, str]]:
    with zipfile.ZipFile(folder / "results.zip", "w") as archive:
        archive.writestr(f"{PLACE}/2008_000006.png", b"")
    damaged = packed(folder / "cut.tgz", {f"{PLACE}/2008_000006.png": np.random.default_rng(0).bytes(9999)})
    damaged.write_bytes(damaged.read_bytes()[:5000])
    (folder / "text.tgz").write_bytes(gzip.compress(b"no archive"))
    return {
        "zip": (folder / "results.zip", "is no gzip-compressed tar"),
        "tar": (packed(folder / "results.tar", {f"{PLACE}/a.png": b""}, "w"), "is no gzip-compressed tar"),
        "cut": (damaged, "is damaged"),
        "text": (folder / "text.tgz", "is damaged or no tar"),
        "out": (packed(folder / "out.tgz", {f"{PLACE}/../../a.png": b""}), "has the path"),
        "absent": (folder / "absent.tgz", "cannot be read"),
    }


@pytest.mark.parametrize("kind", ["zip", "tar", "cut", "text", "out", "absent"])
def test_what_is_no_archive_is_told_in_a_line(kind, run, tmp_path):
    path, message = other_archives(tmp_path)[kind]
    lines, stopped = run(f"check={path}")
    assert lines == []
    assert stopped.startswith(f"error: {path} {message}")
    assert len(stopped.splitlines()) == 1


MISTAKES = {
    "nothing": ([], "ckpt is not set: give a checkpoint"),
    "competition": (["competition=comp3"], "competition=comp3 is not known, need comp5 or comp6"),
    "split": (["split=nowhere", "check=x"], "split 'nowhere' has no list"),
    "root": (["data.root=nowhere", "check=x"], "data.root=nowhere has no folder JPEGImages"),
    "misspelt": (["data.split=val"], "data.split is no setting"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, run):
    arguments, message = MISTAKES[mistake]
    lines, stopped = run(*arguments)
    assert lines == []
    assert stopped.startswith(f"error: {message}")


def test_other_classes_and_unwritable_folders(run, tmp_path):
    save_toy(tmp_path / "three.pth", num_classes=3)
    assert "knows 3 classes (class_1, …), need VOC's 20" in run(f"ckpt={tmp_path}/three.pth")[1]
    save_toy(tmp_path / "voc.pth")
    stopped = run(f"ckpt={tmp_path}/voc.pth", "protocol=plain", "out=/dev/null/here")[1]
    assert stopped.startswith("error: out=/dev/null/here cannot be written")
