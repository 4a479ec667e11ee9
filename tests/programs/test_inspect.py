"""`wsss-afa inspect_data` as a user runs it: lines, report, contact sheet and exit code."""

import csv
import json
import re
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
from PIL import Image

from wsss_afa import inspect_data as inspect
from wsss_afa.data.coco import COCO, COCO_CLASSES
from wsss_afa.files import CONFIG_DIR
from wsss_afa.reports.visualize import contact_sheet, save_figure

REAL = Path(__file__).parents[3] / "shared" / "data"
TAGS = {"a": "cat", "b": "dog", "c": "", "d": "cat;dog", "e": "cat", "f": "dog"}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Inspect in this process; returns exit code, printed lines and the report."""

    def program(*arguments):
        out = tmp_path / "run"
        command = ["inspect_data", "workers=0", f"hydra.run.dir={out}", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        code, last = 0, []
        try:
            inspect.main()
        except SystemExit as stop:
            code, last = (stop.code, []) if isinstance(stop.code, int) else (1, [str(stop.code)])
        report = out / "report.json"
        printed = capsys.readouterr().out.splitlines() + last
        return code, printed, json.loads(report.read_text("utf-8")) if report.is_file() else None

    return program


def photo(path, seed, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Six photos and a CSV that says which validate."""
    root = tmp_path / "photos"
    for seed, name in enumerate(TAGS):
        photo(root / f"{name}.png", seed)
    write_table(root, TAGS)
    return root


def write_table(root, tags):
    rows = [f"{name}.png,{own},{'val' if name in 'ef' else 'train'}" for name, own in tags.items()]
    (root / "labels.csv").write_text("\n".join(["file,tags,split", *rows]) + "\n")


def marked(printed, level):
    return [line.removeprefix(level).strip() for line in printed if line.startswith(level)]


def test_sound_data(run, folder, tmp_path):
    code, printed, report = run("data=folder", f"data.root={folder}", "pictures=3")
    assert code == 0
    (how,) = marked(printed, "data")
    assert re.search(r"labels\.csv, tags separated by ';'; 6 photos, 1 of background only", how)
    assert "nothing to mend" in printed
    assert report["findings"] == []
    assert report["splits"]["train"]["classes"] == {"cat": 2, "dog": 2}
    assert report["splits"]["val"]["classes"] == {"cat": 1, "dog": 1}
    assert report["images_without_tags"] == {"train": [str(folder / "c.png")], "val": []}
    assert report["splits"]["train"]["together"] == [
        {"classes": ["cat", "dog"], "images": 1, "share_of_rarer": 0.5}
    ]
    with Image.open(tmp_path / "run" / "contact_sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
    assert not list((tmp_path / "run").glob("*.partial"))


def test_every_broken_file_is_listed_and_the_exit_code_is_1(run, folder):
    masks = folder / "masks"
    masks.mkdir()
    for name in "ef":
        Image.fromarray(np.ones((30, 40), np.uint8)).save(masks / f"{name}.png")
    Image.fromarray(np.ones((30, 41), np.uint8)).save(masks / "e.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "b.png").write_bytes(b"")
    (folder / "d.png").write_bytes((folder / "f.png").read_bytes())
    code, printed, report = run("data=folder", f"data.root={folder}")
    assert code == 1
    errors = marked(printed, "error ")
    assert [re.search(r"(\w\.png) .*: ", line)[1] for line in errors] == ["a.png", "b.png", "e.png", "d.png"]
    assert "d.png in train" in errors[3]
    assert marked(printed, "warning ") == [
        f"{folder / 'f.png'} has cat in its mask and not in its tags: add the tag or mend the mask"
    ]
    assert printed[-1] == "error: the data has errors (4): mend what is listed above and in report.json"
    levels = [finding["level"] for finding in report["findings"]]
    assert levels == ["error"] * 4 + ["warning"]
    assert report["splits"]["train"]["usable"] == 2


def test_warnings_alone_leave_the_exit_code_0(run, folder):
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    code, printed, report = run("data=folder", f"data.root={folder}")
    assert code == 0
    assert len(marked(printed, "warning ")) == len(report["findings"]) == 1


def test_tags_without_images_and_images_without_tags_are_all_listed(run, folder, tmp_path):
    table = {name: own for name, own in TAGS.items() if name not in "bd"} | {"x": "cat", "yy": "dog"}
    write_table(folder, table)
    code, printed, report = run("data=folder", f"data.root={folder}")
    assert code == 1
    errors = marked(printed, "error ")
    assert re.search(r"labels\.csv line 6 names x\.png, which is no image", errors[0])
    assert re.search(r"labels\.csv line 7 names yy\.png", errors[1])
    assert re.search(r"photos without tags: 2, b\.png first", errors[2])
    assert errors[3] == f"{folder / 'd.png'} has no tags: add a row"
    assert len(report["findings"]) == 4
    assert report["splits"] == {}
    assert not (tmp_path / "run" / "contact_sheet.png").exists()


def test_a_split_that_cannot_be_read_does_not_hide_the_other(run, tmp_path):
    root = tmp_path / "VOC2012"
    for name, seed in {"a": 0, "b": 1}.items():
        photo(root / "JPEGImages" / f"{name}.jpg", seed)
        (root / "Annotations").mkdir(exist_ok=True)
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("b\nc\nd\n")
    code, printed, report = run("data=voc", f"data.root={root}")
    assert code == 1
    errors = marked(printed, "error ")
    assert re.search(r"lacks 2 of the 3 files of split 'val', c\.jpg first", errors[0])
    assert errors[1] == f"{root / 'JPEGImages' / 'd.jpg'} is missing: copy it"
    assert report["splits"].keys() == {"train"}
    assert report["splits"]["train"]["images"] == 2


def test_names_with_brackets_are_printed_as_they_are(run, folder):
    write_table(folder, {name: own.replace("dog", "dog[/b]") for name, own in TAGS.items()})
    code, printed, report = run("data=folder", f"data.root={folder}")
    assert code == 0
    assert any("dog[/b]" in line for line in printed if line.startswith("│"))
    assert report["splits"]["train"]["classes"]["dog[/b]"] == 2


def test_long_lists_are_cut_in_print_only(run, folder):
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(b"")
    code, printed, report = run("data=folder", f"data.root={folder}", "listed=1")
    assert code == 1
    assert len(marked(printed, "error ")) == 2
    assert any("3 more of this kind in report.json" in line for line in printed)
    assert len(report["findings"]) == 4


def test_generated_scenes_have_nothing_to_mend(run):
    sizes = ["data.image_size=32", "data.num_classes=2", "data.train_images=12", "data.val_images=4"]
    code, printed, report = run(*sizes, "data.crop_size=32", "pictures=0")
    assert code == 0
    assert "12 generated scenes for train" in printed[0]
    assert report["splits"]["val"]["masks"] == 4


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["data=folder"], r"data\.root"),
        (["data=folder", "data.root=nowhere"], r"errors \(1\)"),
        (["data=folder", "data.root=.", "+data.tags=x"], r"data\.tags is no setting"),
        (["workers=-1"], r"workers=-1"),
    ],
)
def test_a_mistake_gets_one_line(run, arguments, pattern):
    code, printed, _ = run(*arguments)
    assert code == 1
    assert re.fullmatch(rf"error: .*{pattern}.*", printed[-1])


def test_names_in_any_script_and_formulas_are_drawn_as_they_are(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    figure = contact_sheet([("train: 猫, $x_$", pixels), ("val: $", pixels), ("c", pixels)], columns=2)
    save_figure(figure, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height * 0.8


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data beside the checkout")
@pytest.mark.parametrize("data", ["voc", "coco"])
def test_real_photographs(run, data, tmp_path):
    roots = {"voc": REAL / "voc_mini" / "VOCdevkit" / "VOC2012", "coco": REAL / "coco_mini"}
    extra = [f"data.cache_dir={tmp_path / 'cache'}"] if data == "coco" else []
    code, _, report = run(f"data={data}", f"data.root={roots[data]}", "pictures=0", *extra)
    assert code == 0
    counts = {"voc": (126, 69), "coco": (160, 80)}[data]
    assert tuple(report["splits"][name]["usable"] for name in ("train", "val")) == counts
    assert report["splits"]["val"]["masks"] == counts[1]
    assert not [finding for finding in report["findings"] if finding["kind"] in ("leak", "duplicate")]


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data beside the checkout")
def test_own_photographs_with_a_csv(run, tmp_path):
    """COCO's annotations, written as a person would, are counted as COCO's own reader counts them."""
    images = COCO(REAL / "coco_mini", "val")
    root = tmp_path / "photos"
    root.mkdir()
    with (root / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "tags"])
        for path, row in zip(images.paths, images.labels, strict=True):
            (root / path.name).symlink_to(path)
            table.writerow([path.name, ";".join(COCO_CLASSES[tag] for tag in np.flatnonzero(row))])
    code, _, report = run("data=folder", f"data.root={root}", "pictures=0")
    assert code == 0
    counted = {name: report["splits"]["train"]["classes"][name] + count
               for name, count in report["splits"]["val"]["classes"].items()}  # fmt: skip
    truth = zip(COCO_CLASSES, images.labels.sum(0).tolist(), strict=True)
    assert counted == {name: count for name, count in truth if count}


def commands():
    """Programs and arguments that the guide to data tells people to type."""
    guide = Path(__file__).parents[2] / "docs" / "data.md"
    text = guide.read_text("utf-8") if guide.is_file() else ""
    return re.findall(r"^(?:\$ )?wsss-afa (\w+) (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(("program", "arguments"), commands())
def test_the_guides_commands_compose(program, arguments):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        assert hydra.compose(program, arguments.split())
