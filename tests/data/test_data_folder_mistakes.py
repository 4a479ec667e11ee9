"""Own photos gone wrong: a line that names file, problem and remedy for each kind of mistake."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.errors import UserError

CSV = "file,tags\na.jpg,cat\nb.jpg,dog\nc.jpg,\n"


def photo(path, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(path)


def whole(root):
    """Three photos with a tag file."""
    for name in "abc":
        photo(root / f"{name}.jpg")
    (root / "labels.csv").write_text(CSV)


def csv(text, name="labels.csv"):
    """The photos with another tag file."""

    def write(root):
        whole(root)
        (root / "labels.csv").unlink()
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def also(change):
    """The whole folder, then changed."""

    def write(root):
        whole(root)
        change(root)

    return write


def folders(*files):
    def write(root):
        for file in files:
            photo(root / file)

    return write


def mask(values, name="a.png", mode="L", size=(12, 16), split="a"):
    """The photos with masks, of which one is special; two classes."""

    def write(root):
        whole(root)
        lines = CSV.replace("tags", "tags,split").splitlines()
        (root / "labels.csv").write_text(
            "\n".join([lines[0], *(f"{line},{'val' if line[0] == split else 'train'}" for line in lines[1:])])
        )
        for letter in "bc":
            photo_mask = Image.new("L", (16, 12))
            (root / "masks").mkdir(exist_ok=True)
            photo_mask.save(root / "masks" / f"{letter}.png")
        Image.fromarray(np.full(size, values, np.uint8)).convert(mode).save(root / "masks" / name)

    return write


def one_class_mask(root):
    folders("train/cat/x.jpg", "train/background/y.jpg", "val/cat/a.jpg")(root)
    (root / "masks").mkdir()
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 8, 1).repeat(12, 0)).save(root / "masks/a.png")


def coco(**changes):
    content = {
        "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")],
        "annotations": [{"image_id": 0, "category_id": 5}, {"image_id": 1, "category_id": 6}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    return csv(json.dumps(content), "instances.json")


TAG_FILES = {
    "no header": (
        csv("a.jpg,cat\nb.jpg,dog\nc.jpg,\n"),
        "labels.csv starts with 'a.jpg', .*put `file,tags` on top",
    ),
    "empty file": (csv(""), "labels.csv is empty, need a header"),
    "header alone": (csv("file,tags\n"), "labels.csv has no row, .*add them"),
    "no image column": (csv("when,tags\n1,cat\n"), "columns .*'when', 'tags'.*call it `file`"),
    "no tag column": (csv("file\na.jpg\nb.jpg\nc.jpg\n"), "no tags: add a column `tags`"),
    "two columns of one name": (csv("file,tags,tags\na.jpg,x,y\n"), "two columns 'tags', .*rename or delete"),
    "unquoted commas": (
        csv(CSV + "d.jpg,cat,dog\n"),
        "labels.csv line 5 has 3 fields, its header 2: put .*quotation",
    ),
    "missing comma": (
        csv("file,tags\na.jpg,cat\nb.jpg,dog\nc.jpg\n"),
        "line 4 has 1 fields, .*keep the comma",
    ),
    "open quotation mark": (csv('file,tags\na.jpg,"cat\nb.jpg,dog\n'), "line 3 is no CSV .*quotation mark"),
    "file unknown": (
        csv(CSV + "d9.jpg,cat\n"),
        r"labels.csv line 5 names d9\.jpg, which is no image .*(mean|copy)",
    ),
    "file misspelt": (
        csv("file,tags\nphoto_1.jpg,cat\n"),
        "line 2 names photo_1.jpg, .*did you mean photo_l.jpg",
    ),
    "file in another folder": (
        csv(CSV.replace("a.jpg", "x/a.png")),
        r"line 2 names x/a\.png, which is no image",
    ),
    "file missing": (csv("file,tags\n,cat\n"), "line 2 has no image in 'file': write its file name"),
    "image without row": (csv("file,tags\na.jpg,cat\n"), r"photos without tags: 2, b\.jpg first: add rows"),
    "repeated row": (csv(CSV + "a.jpg,cat\n"), r"line 5 repeats a\.jpg, .*merge them"),
    "contradictory row": (
        csv(CSV + "a.jpg,dog\n"),
        r"line 5 gives a\.jpg other tags than .*line 2, .*merge them",
    ),
    "two separators": (
        csv(CSV.replace("cat", "cat;x").replace("dog", '"dog,x"')),
        "';' between tags on line 2 and ',' on line 3, .*data.separator",
    ),
    "values other than 0 and 1": (
        csv("file,cat,dog\na.jpg,1,0\nb.jpg,0,2\n"),
        "line 3 has '2' in column 'dog', need 0",
    ),
    "empty 0-or-1 cell": (
        csv("file,cat,dog\na.jpg,1,\n"),
        "line 2 has '' in column 'dog', need 0 or 1: change",
    ),
    "Latin-1": (csv("file,tags\na.jpg,cafe\nb.jpg,café\n".encode("latin-1")), "line 3 is not UTF-8: save"),
    "broken list": (csv("file;tags\na.jpg;['cat'\n"), "line 2 has the broken list .*mend it"),
    "unknown split": (
        csv("file,tags,split\na.jpg,cat,later\n"),
        "line 2 has split 'later', need train, val or test: change",
    ),
    "one split": (
        csv(
            CSV.replace("tags", "tags,split")
            .replace("cat", "cat,val")
            .replace("dog", "dog,test")
            .replace("c.jpg,", "c.jpg,,val")
        ),
        "photos of the split test and val only, need some of train: name",
    ),
    "upper and lower case": (csv(CSV.replace("dog", "Cat")), "classes 'Cat' and 'cat': spell them alike"),
    "no tag at all": (
        csv("file,tags\na.jpg,\nb.jpg,\nc.jpg,\n"),
        "3 photos without any tag, .*fill the tag file",
    ),
    "one class on every photo": (
        csv(CSV.replace("dog", "cat").replace("c.jpg,", "c.jpg,cat")),
        "all of the class 'cat', .*add photos without it",
    ),
    "JSON cut off": (
        csv('[{"file": "a.jpg",\n "tags": ["cat"', "labels.json"),
        "line 2 column 16 is no JSON .*mend",
    ),
    "JSON of another kind": (
        csv("42", "labels.json"),
        "labels.json holds a number, need a list .*rewrite it",
    ),
    "JSON list of text": (csv('["a.jpg"]', "labels.json"), "item 1 is text, need an object: write it like"),
    "JSON without tags": (
        csv('[{"file": "a.jpg", "tags": null}]', "labels.json"),
        "item 1 has no list of names .*null",
    ),
    "JSON key twice": (csv('{"a.jpg": ["cat"], "a.jpg": []}', "labels.json"), "'a.jpg' twice .*keep one"),
    "JSON line broken": (
        csv('{"file": "a.jpg", "tags": []}\n{"file"\n', "labels.jsonl"),
        "labels.jsonl line 2 .*no JSON",
    ),
    "JSON line of another kind": (
        csv('{"file": "a.jpg", "tags": []}\n\n[1]\n', "labels.jsonl"),
        "line 3 is a list",
    ),
    "COCO without categories": (
        coco(categories=None),
        "instances.json has no list 'categories', .*export it anew",
    ),
    "COCO annotation of no image": (
        coco(annotations=[{"image_id": 9, "category_id": 5}]),
        "image_id 9, which is not",
    ),
    "COCO category unknown": (
        coco(annotations=[{"image_id": 0, "category_id": 1}]),
        "category_id 1, which is not",
    ),
    "COCO category twice": (
        coco(categories=[{"id": 5, "name": "cat"}] * 2),
        "two categories of one id or name",
    ),
    "COCO image without name": (coco(images=[{"id": 0}, {"id": 1}]), "entry of 'images' without 'file_name'"),
}


def misspelt(root):
    photo(root / "photo_l.jpg")
    (root / "labels.csv").write_text("file,tags\nphoto_1.jpg,cat\n")


def ambiguous(root):
    folders("x/a.jpg", "y/a.jpg")(root)
    (root / "labels.csv").write_text("file,tags\na.jpg,cat\n")


def loop(root):
    folders("cat/a.jpg", "dog/b.jpg")(root)
    (root / "dog" / "again").symlink_to(root, target_is_directory=True)


def dangling(root):
    folders("cat/a.jpg", "dog/b.jpg")(root)
    (root / "dog" / "c.jpg").symlink_to(root / "nothing.jpg")


FOLDERS = {
    "file misspelt": (misspelt, "line 2 names photo_1.jpg, .*did you mean photo_l.jpg"),
    "file ambiguous": (ambiguous, r"line 2 means x/a\.jpg or y/a\.jpg: write the path from"),
    "no image": (
        lambda root: (root / "notes.txt").write_text(""),
        "has no image, need photos .*set data.root",
    ),
    "no tags": (folders("a.jpg", "b.jpg"), "has no tags, need labels.csv"),
    "photo beside class folders": (
        folders("cat/a.jpg", "b.jpg"),
        r"has b\.jpg beside folders of classes, .*move",
    ),
    "class folder empty": (
        lambda root: (folders("cat/a.jpg")(root), (root / "dog").mkdir()),
        "dog has no image, .*fill",
    ),
    "one class folder": (folders("cat/a.jpg", "cat/b.jpg"), "all of the class 'cat', .*folder `background`"),
    "names that differ in their ending": (
        folders("cat/a.jpg", "cat/a.png"),
        r"cat/a\.jpg and cat/a\.png, .*rename",
    ),
    "folder named like a photo": (folders("cat/a.jpg", "x.jpg/b.jpg"), r"x\.jpg is a folder .*rename"),
    "camera's format": (also(lambda root: (root / "IMG_1.HEIC").touch()), r"IMG_1\.HEIC .*convert it"),
    "link to nothing": (dangling, r"c\.jpg links to nothing, .*remove the link"),
    "links in a circle": (loop, "again links back to .*remove the link"),
    "two tag files": (
        also(lambda root: (root / "labels.json").touch()),
        "labels.csv and labels.json, .*data.labels",
    ),
    "tag not in the class list": (
        also(lambda root: (root / "classes.txt").write_text("cat\n")),
        "line 3 has the tag 'dog', which is not in .*classes.txt: mend",
    ),
    "mask of no photo": (mask(0, "z.png"), r"masks/z\.png names z, which is no image"),
    "mask as JPEG": (mask(0, "a.jpg"), r"masks/a\.jpg is no PNG, .*save it anew"),
}

SAMPLES = {
    "text named .jpg": (
        also(lambda root: (root / "a.jpg").write_text("hello")),
        r"a\.jpg cannot be read as an image",
    ),
    "empty photo": (
        also(lambda root: os.truncate(root / "a.jpg", 0)),
        r"a\.jpg cannot be read as an image .*copy",
    ),
    "photo cut off": (
        also(lambda root: os.truncate(root / "a.jpg", 400)),
        r"a\.jpg cannot be read .*copy it anew",
    ),
    "mask of another size": (mask(0, size=(6, 8)), r"masks/a\.png is \(6, 8\) pixels, its image \(12, 16\)"),
    "coloured mask": (mask(0, mode="RGB"), r"masks/a\.png has mode RGB, .*palette PNG"),
    "mask value out of range": (mask(3), r"masks/a\.png has label 3, need 0 to 2 or 255: replace"),
    "foreground as 255": (
        one_class_mask,
        r"a\.png has the labels 0 and 255, need 1 for cat: change it",
    ),
    "255 alone": (mask(255), r"a\.png has the labels 255, need 1 for \w+: change it"),
    "mask missing": (mask(0, "b.png"), r"masks lacks 1 of the 1 masks of split 'val', a\.jpg first: add"),
}


def one_line(error, pattern):
    message = str(error.value)
    assert "\n" not in message
    assert re.search(pattern, message), message
    assert ": " in message  # the remedy


@pytest.mark.parametrize(("kind", "case"), (TAG_FILES | FOLDERS).items())
def test_reading_a_broken_folder(tmp_path, kind, case):
    write, pattern = case
    write(tmp_path)
    with pytest.raises(UserError) as error:
        read_folder(tmp_path)
    one_line(error, pattern)


@pytest.mark.parametrize(("kind", "case"), SAMPLES.items())
def test_opening_broken_files(tmp_path, kind, case):
    write, pattern = case
    write(tmp_path)
    content = read_folder(tmp_path)
    with pytest.raises(UserError) as error:  # noqa: PT012
        for split in ("train", "val"):
            list(TaggedFolder(content, split, with_mask=bool(content.masks) and split == "val"))
    one_line(error, pattern)


def test_settings(tmp_path):
    whole(tmp_path)
    for wrong, pattern in (
        ({"root": tmp_path / "nowhere"}, r"data\.root=.*nowhere does not exist, .*mend the path"),
        ({"root": tmp_path / "labels.csv"}, r"data\.root=.*labels\.csv is a file, .*unpack"),
        ({"labels": "tags.csv"}, r"data\.labels=tags\.csv is no file"),
        ({"labels": "a.jpg"}, r"a\.jpg is no tag file, need .*convert"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is 1\.0, need a share"),
    ):
        with pytest.raises(UserError) as error:
            read_folder(**{"root": tmp_path, **wrong})
        one_line(error, pattern)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path):
    whole(tmp_path)
    (tmp_path / "labels.csv").chmod(0)
    with pytest.raises(UserError) as error:
        read_folder(tmp_path)
    one_line(error, r"labels\.csv cannot be read .*change its permissions")


def test_a_single_photo_cannot_be_split(tmp_path):
    folders("cat/a.jpg")(tmp_path)
    (tmp_path / "labels.csv").write_text("file,cat,dog\na.jpg,1,1\n")
    with pytest.raises(UserError, match="has 1 photo, need two"):
        read_folder(tmp_path)


def test_unlisted_photos_may_be_left_out(tmp_path):
    whole(tmp_path)
    photo(tmp_path / "d.jpg")
    assert read_folder(tmp_path, ignore_unlisted=True).files == ["a.jpg", "b.jpg", "c.jpg"]
