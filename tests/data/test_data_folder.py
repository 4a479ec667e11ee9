"""Own photos: every layout and spelling gives the same tags, and splits, masks and training follow."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_afa import evaluate, train
from wsss_afa.data.folder.content import FolderDataModule, TaggedFolder, read_folder
from wsss_afa.errors import UserError
from wsss_afa.inference.predictor import Predictor

TAGS = {"a": ["cat"], "b": ["cat", "dog"], "c": [], "d": ["dog"], "e": ["hot dog"], "f": ["cat", "hot dog"]}
CLASSES = ("cat", "dog", "hot dog")
SIZES = {"a": (60, 90), "b": (99, 64), "c": (64, 72), "d": (72, 72), "e": (63, 80), "f": (64, 64)}


def photo(path, size=(12, 16), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(map(ord, path.stem))).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def photos(root, tags=TAGS):
    for name in tags:
        photo(root / "photos" / f"{name}.jpg", SIZES[name])
    return root


def table(header, *lines, ending="\n"):
    return ending.join([header, *lines]) + ending


def joined(mark, quote="", tags=TAGS, delimiter=","):
    lines = (f"{name}.jpg{delimiter}{quote}{mark.join(own)}{quote}" for name, own in tags.items())
    return table(f"file{delimiter}tags", *lines)


def one_hot(on, off):
    rows = ([f"photos/{name}.jpg", *(on if c in own else off for c in CLASSES)] for name, own in TAGS.items())
    return table(f"image,{','.join(CLASSES)}", *(",".join(row) for row in rows))


def coco(tags=TAGS):
    names = list(TAGS)
    return {
        "images": [{"id": names.index(n), "file_name": f"{n}.jpg", "width": 1, "height": 1} for n in tags],
        "annotations": [
            {"image_id": names.index(n), "category_id": 7 + CLASSES.index(t), "segmentation": [[0, 0, 1, 1]]}
            for n, own in tags.items()
            for t in own * 2
        ],
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(CLASSES)],
    }  # fmt: skip


SPELLINGS = {
    "semicolon": ("labels.csv", joined(";"), "tags separated by ';'"),
    "quoted comma": ("labels.csv", joined(",", '"'), "tags separated by ','"),
    "bar": ("tags.csv", joined("|"), r"tags separated by '\|'"),
    "bar with blanks": ("labels.csv", joined(" | "), "tags separated"),
    "semicolon file, comma tags": ("labels.csv", joined(",", delimiter=";"), "tags separated by ','"),
    "tab file": ("labels.tsv", joined(";", delimiter="\t"), "separated by ';'"),
    "JSON lists": ("labels.csv", table("file;tags", *(
        f"{n};{json.dumps(t)}" for n, t in TAGS.items())), "as lists"),
    "Python lists": ("labels.csv", table("file;tags", *(f"{n};{t}" for n, t in TAGS.items())), "as lists"),
    "byte order mark": ("labels.csv", "\ufeff" + joined(";"), "separated"),
    "Windows lines": ("labels.csv", joined(";").replace("\n", "\r\n"), "separated"),
    "other names": ("x.csv", joined(";").replace("file,tags", "Image_Path , Labels"), "separated"),
    "backslashes": ("labels.csv", table("file,tags", *(
        f"photos\\{n}.jpg,{';'.join(t)}" for n, t in TAGS.items())), "separated"),
    "foreign folders": ("labels.csv", table("file,tags", *(
        f"/home/me/photos/{n}.jpg,{';'.join(t)}" for n, t in TAGS.items())), "separated"),
    "trailing marks": ("labels.csv", joined(";").replace("dog\n", "dog;\n"), "separated"),
    "background": ("labels.csv", joined(";").replace(",\n", ",Background\n"), "separated"),
    "more columns": ("labels.csv", table("id,file,tags,width", *(
        f"{i},{n},{';'.join(t)},9" for i, (n, t) in enumerate(TAGS.items()))), "separated"),
    "0 and 1": ("labels.csv", one_hot("1", "0"), "0-or-1"),
    "true and false": ("labels.csv", one_hot("True", "false"), "0-or-1"),
    "1.0 and 0.0": ("labels.csv", one_hot("1.0", "0.0"), "0-or-1"),
    "list of objects": ("labels.json", json.dumps(
        [{"file": n, "tags": t} for n, t in TAGS.items()]), "as lists"),
    "objects with text": ("a.json", json.dumps(
        [{"file": n, "labels": "; ".join(t)} for n, t in TAGS.items()]), "separated by ';'"),
    "mapping": ("labels.json", json.dumps(TAGS), "as lists"),
    "mapping to text": ("labels.json", json.dumps({n: "|".join(t) for n, t in TAGS.items()}), "separated"),
    "0 and 1 objects": ("labels.json", json.dumps(
        [{"name": n, **{c: int(c in t) for c in CLASSES}} for n, t in TAGS.items()]), "0-or-1"),
    "JSON lines": ("labels.jsonl", "\n".join(
        json.dumps({"file": n, "tags": t}) for n, t in TAGS.items()), "lists"),
    "COCO": ("instances.json", json.dumps(coco()), "COCO"),
}  # fmt: skip


def named(content):
    """Tags by photo, in names."""
    return {
        Path(file).stem: [content.class_names[c] for c in np.flatnonzero(own)]
        for file, own in zip(content.files, content.labels, strict=True)
    }


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_reads_alike(tmp_path, spelling):
    name, text, how = SPELLINGS[spelling]
    photos(tmp_path).joinpath(name).write_text(text, encoding="utf-8", newline="")
    content = read_folder(tmp_path)
    assert (content.class_names, named(content)) == (CLASSES, TAGS)
    assert re.search(how, content.summary)
    assert f"{name}, " in content.summary
    assert "\n" not in content.summary
    assert "6 photos, 1 of background only; 3 classes: cat, dog, hot dog" in content.summary


def test_utf_16_as_spreadsheets_write_it(tmp_path):
    photos(tmp_path).joinpath("labels.csv").write_text(joined(";", delimiter="\t"), encoding="utf-16")
    assert named(read_folder(tmp_path)) == TAGS


def test_blanks_separate_where_nothing_else_can_be_meant(tmp_path):
    for name in "uvxyz":
        photo(tmp_path / f"{name}.jpg")
    lines = ["x.jpg,cat dog", "y.jpg,cat", "z.jpg,", "u.jpg,", "v.jpg,"]
    (tmp_path / "labels.csv").write_text(table("file,class", *lines))
    assert read_folder(tmp_path).class_names == ("cat", "cat dog")
    (tmp_path / "labels.csv").write_text(table("file,tags", *lines))
    with pytest.raises(UserError, match=r"line 2 has 'cat dog', which may be one tag or 2: set 'data\.sep"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, separator=";").class_names == ("cat", "cat dog")
    assert read_folder(tmp_path, separator=" ").class_names == ("cat", "dog")
    (tmp_path / "labels.csv").write_text(table("file,tags", *lines[:3], "u.jpg,owl dog", "v.jpg,cat owl dog"))
    assert read_folder(tmp_path).class_names == ("cat", "dog", "owl")
    for listed, classes in (("cat\ndog\nowl", ("cat", "dog", "owl")), ("cat\ncat dog", ("cat", "cat dog"))):
        (tmp_path / "labels.csv").write_text(table("file,tags", *lines))
        (tmp_path / "classes.txt").write_text(listed)
        assert read_folder(tmp_path).class_names == classes


LAYOUTS = {
    "folders": ("cat/1.jpg", "cat/deep/er/2.png", "dog/1.webp", "background/3.bmp"),
    "folders in images": (
        "images/cat/1.jpg", "images/cat/2.tif", "images/dog/1.gif", "images/Background/3.JPG",
    ),
    "folders in splits": ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpeg", "valid/background/3.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_classes(tmp_path, layout):
    for file in LAYOUTS[layout]:
        photo(tmp_path / file)
    photo(tmp_path / ".hidden" / "x.jpg")
    (tmp_path / "cat.txt").write_text("notes are no photos")
    content = read_folder(tmp_path)
    assert (content.class_names, len(content.files)) == (("cat", "dog"), 4)
    assert sorted(content.labels.sum(1)) == [0, 1, 1, 1]
    assert "a sub-folder per class" in content.summary
    assert all(TaggedFolder(content, split)[0]["image"].shape == (12, 16, 3) for split in ("train", "val"))
    if "splits" in layout:
        assert content.splits == ["train", "train", "val", "val"]


def test_a_tag_file_in_each_split(tmp_path):
    for split, names in (("train", "abc"), ("valid", "def")):
        tags = {name: TAGS[name] for name in names}
        for name in names:
            photo(tmp_path / split / f"{name}.jpg")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco(tags)))
    content = read_folder(tmp_path)
    assert named(content) == TAGS
    assert content.splits == ["train"] * 3 + ["val"] * 3


def test_a_split_column_decides(tmp_path):
    splits = dict(zip(TAGS, ["train", "Training", "val", "validation", "test", "train"], strict=True))
    lines = (f"{n},{';'.join(t)},{splits[n]}" for n, t in TAGS.items())
    photos(tmp_path).joinpath("labels.csv").write_text(table("file,tags,split", *lines))
    content = read_folder(tmp_path)
    assert content.splits == ["train", "train", "val", "val", "test", "train"]
    assert [Path(file).stem for file in TaggedFolder(content, "val").files] == ["c", "d"]


def test_lists_as_voc_has_them_decide(tmp_path):
    lists = photos(tmp_path) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "labels.csv").write_text(joined(";"))
    for name, own in {"train": "abd", "val": "e", "trainval": "abde", "test": "cf"}.items():
        (lists / f"{name}.txt").write_text("".join(f"{each}\n" for each in own))
    content = read_folder(tmp_path)
    assert content.splits == ["train", "train", "test", "train", "val", "test"]
    assert "by lists" in content.summary


def test_a_class_list_settles_the_order(tmp_path):
    photos(tmp_path).joinpath("labels.csv").write_text(joined(";"))
    (tmp_path / "classes.txt").write_text("background\nhot dog\nzebra\ndog\ncat\n")
    content = read_folder(tmp_path)
    assert content.class_names == ("hot dog", "zebra", "dog", "cat")
    assert "no training photo of zebra" in content.summary


def test_one_class_and_as_many_as_labels_hold(tmp_path):
    photos(tmp_path)
    (tmp_path / "labels.csv").write_text(joined(";", tags={n: ["cat"] * bool(t) for n, t in TAGS.items()}))
    assert read_folder(tmp_path).class_names == ("cat",)
    for count in (254, 255):
        many = {name: [f"class_{i:04d}" for i in range(k, count, 6)] for k, name in enumerate(TAGS)}
        (tmp_path / "labels.json").write_text(json.dumps(many))
        if count == 254:
            content = read_folder(tmp_path, labels="labels.json")
            assert (len(content.class_names), named(content)) == (254, many)
    with pytest.raises(UserError, match="has 255 classes, need 254 at most, for labels are of 8 bits: merge"):
        read_folder(tmp_path, labels="labels.json")


def test_photos_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(tmp_path / "cat" / "x.jpg", (12, 16), exif=exif)
    photo(tmp_path / "dog" / "y.jpg")
    content = read_folder(tmp_path)
    sizes = [sample["image"].shape for split in ("train", "val") for sample in TaggedFolder(content, split)]
    assert sorted(sizes) == [(12, 16, 3), (16, 12, 3)]


def test_linked_folders_are_followed(tmp_path):
    photo(tmp_path / "elsewhere" / "x.jpg")
    photo(tmp_path / "root" / "dog" / "y.jpg")
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert read_folder(tmp_path / "root").class_names == ("cat", "dog")


# Masks


def masked(root, names=TAGS):
    photos(root).joinpath("labels.csv").write_text(joined(";"))
    for name in names:
        mask = np.zeros(SIZES[name], np.uint8)
        mask[2:9, 3:12] = CLASSES.index(TAGS[name][0]) + 1 if TAGS[name] else 0
        mask[0] = 255
        image = Image.fromarray(mask)
        if name in "ab":
            image.putpalette(list(range(256)) * 3)
        path = root / "masks" / ("photos" if name in "ac" else "") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def test_large_photos_are_reduced_with_their_masks(tmp_path):
    content = read_folder(masked(tmp_path), val_fraction=0.5)
    whole = TaggedFolder(content, "val", with_mask=True)
    reduced = TaggedFolder(content, "val", with_mask=True, max_side=10)
    for before, after in zip(whole, reduced, strict=True):
        assert max(before["image"].shape) > 10
        assert max(after["image"].shape[:2]) == 10
        assert after["mask"].shape == after["image"].shape[:2]
        assert set(np.unique(after["mask"])) <= set(np.unique(before["mask"]))
    assert max(TaggedFolder(content, "train", max_side=10)[0]["image"].shape[:2]) == 10


def test_masks_are_read_for_validation_alone(tmp_path):
    content = read_folder(masked(tmp_path), val_fraction=0.5)
    assert "6 masks" in content.summary
    val = TaggedFolder(content, "val", with_mask=True)
    for sample in (val[i] for i in range(len(val))):
        own = [CLASSES.index(tag) + 1 for tag in TAGS[Path(sample["name"]).name][:1]]
        assert set(np.unique(sample["mask"])) == {0, 255, *own}
        assert sample["mask"].shape == sample["image"].shape[:2]


def test_training_opens_no_mask(tmp_path):
    for path in masked(tmp_path).joinpath("masks").rglob("*.png"):
        path.write_bytes(b"corrupt")
    data = FolderDataModule(str(tmp_path), batch_size=3, crop_size=16)
    data.setup("fit")
    assert all("mask" not in batch for batch in data.train_dataloader())
    with pytest.raises(UserError, match=r"masks.*\.png cannot be read"):
        list(data.val_dataloader())


def test_where_some_photos_have_masks_these_validate(tmp_path):
    content = read_folder(masked(tmp_path, "af"), val_fraction=0.5)
    chosen = {Path(file).stem for file, s in zip(content.files, content.splits, strict=True) if s == "val"}
    assert chosen
    assert chosen <= {"a", "f"}


# From the command line


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:The number of training batches")
@pytest.mark.parametrize("with_masks", [False, True])
def test_photos_and_a_csv_train_and_evaluate(tmp_path, monkeypatch, capsys, with_masks):
    root = masked(tmp_path / "own", TAGS if with_masks else ())
    photo(root / "photos" / "broken.jpg")
    os.truncate(root / "photos" / "broken.jpg", 300)
    with (root / "labels.csv").open("a") as file:
        file.write("broken.jpg,cat\n")
    if with_masks:
        Image.new("L", (16, 12)).save(root / "masks" / "broken.png")

    def run(program, *overrides):
        folder = f"hydra.run.dir={tmp_path / program.__name__}"
        own = [f"data.root={root}", "data.num_workers=0", "data.skip_broken=true", "data.val_fraction=0.5"]
        monkeypatch.setattr(
            sys, "argv", [program.__name__, *own, *overrides, "trainer.accelerator=cpu", folder]
        )
        program.main()
        scores = json.loads((tmp_path / program.__name__ / "metrics.json").read_text())
        return scores.get("last", scores)

    small = "{embed_dim: 24, depth: 9, num_heads: 2}"
    scores = run(
        train, "+experiment=folder", "data.crop_size=64", "data.batch_size=4", "method.decoder_dim=16",
        "backbone.pretrained=null", f"++backbone.model_args={small}", "data.balanced=true",
        "method.classification.positive_weight=balanced", "method.classification.tag_smoothing=0.1",
        "method.phases.segmentation=2", "method.phases.propagation=3", "trainer.max_steps=3",
        "trainer.devices=1", "trainer.val_check_interval=1",
    )  # fmt: skip
    assert ("val/miou_seg" in scores) == with_masks
    results = json.loads((tmp_path / train.__name__ / "metrics.json").read_text())
    assert results["best_by"] == ("val/miou_seg" if with_masks else "val/agreement")
    assert results["best"] == results["last"], "before it no step trained the segmentation"
    assert 0 <= scores["val/map_cls"] <= 100
    out = capsys.readouterr().out
    assert out.count(f"data      {tmp_path}") == 1  # what was read; what is trained on is said elsewhere
    assert ("no masks, so no mIoU" in out) == (not with_masks)
    assert "skipped   1 unreadable images:\n  " in out
    assert "broken.jpg cannot be read" in out
    checkpoints = tmp_path / train.__name__ / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    again = run(evaluate, f"ckpt={checkpoints / 'last.ckpt'}", "data=folder")
    assert again["val/map_cls"] == scores["val/map_cls"]
    assert again["iou"] == scores["iou"]
    assert Predictor.from_checkpoint(checkpoints / "last.ckpt", "cpu").sizes.long_side == 320
