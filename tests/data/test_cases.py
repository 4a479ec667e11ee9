"""Folders as people have them: each is read as it is meant, or refused in one line that says what to do.

A folder is a mapping from file to content: text, a mode and size of an image, or an array of pixels.
"""

import json

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.data.inspection import Split, find_problems, look_at_all
from wsss_afa.errors import UserError

NFC, NFD = "V\u00f6gel", "Vo\u0308gel"
GREY = ("L", (8, 8))


def write(root, files):
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8", newline="")
        elif isinstance(content, np.ndarray):
            Image.fromarray(content).save(path)
        else:
            mode, size = content
            pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)


def photos(*names, mode="RGB", size=(8, 8), ending=".png"):
    return {f"{name}{ending}": (mode, size) for name in names}


def placed(*folders, count=2, **options):
    """Photos of other names in each folder."""
    names = (f"{folder}/{folder.replace('/', '_')}{i}" for folder in folders for i in range(count))
    return photos(*names, **options)


def csv(*lines, header="file,tags", name="labels.csv", names="abcdef"):
    return photos(*names[: len(lines)]) | {
        name: "\n".join([header, *(f"{n},{line}" for n, line in zip(names, lines, strict=False))])
    }


def listed(*cells):
    """A table of cells in quotation marks, of three photos more than cells, without tags."""
    return csv(*(f'"{cell}"' for cell in cells), "", "")


def coco(image=int, annotation=int, **changes):
    content = {
        "images": [{"id": image(i), "file_name": f"{n}.png"} for i, n in enumerate("abc")],
        "annotations": [{"image_id": annotation(i), "category_id": annotation(i)} for i in range(2)],
        "categories": [{"id": image(0), "name": "cat"}, {"id": image(1), "name": "dog"}],
    } | changes
    return photos(*"abc") | {"instances.json": json.dumps(content)}


LABELS = {f"mask/{n}.png": np.full((8, 8), 255 * (n == "a"), np.uint8) for n in "ab"}
CAT_DOG = ("cat", "dog")

READ = {
    # splits that are not called train and val
    "train and test": (placed("train/cat", "train/dog", "test/cat", "test/dog"), CAT_DOG, 4),
    "Training and Testing": (placed("Training/cat", "Training/dog", "Testing/cat"), CAT_DOG, 2),
    "train and evaluation": (placed("train/cat", "train/dog", "evaluation/cat"), CAT_DOG, 0),
    "training_set and test_set": (placed("training_set/cat", "training_set/dog", "test_set/cat"), CAT_DOG, 2),
    "nested splits": (
        placed("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat"),
        CAT_DOG,
        2,
    ),
    "tests without classes": (placed("train/cat", "train/dog", "test"), CAT_DOG, 0),
    "train, dev and holdout": (placed("train/cat", "train/dog", "dev/cat", "hold-out/dog"), CAT_DOG, 2),
    "splits within classes": (placed("cat/train", "cat/test", "dog/train", "dog/test"), CAT_DOG, 4),
    "images in splits": (placed("train/images/cat", "train/images/dog", "val/images/cat"), CAT_DOG, 0),
    "a class called train": (placed("train", "car"), ("car", "train"), 0),
    "classes with words of splits": (placed("test tube", "training shoe"), ("test tube", "training shoe"), 0),
    "table of train and test": (
        csv("cat", "", "dog", names=["train/a", "train/b", "test/c"])
        | {"labels.csv": "file,tags\ntrain/a.png,cat\ntrain/b.png,\ntest/c.png,dog\n"},
        CAT_DOG,
        1,
    ),
    "column of train and test": (
        csv("cat,train", "dog,train", "cat,test", header="file,tags,split"),
        CAT_DOG,
        1,
    ),
    "column of another name": (
        csv("cat,Training", "dog,Training", "cat,PublicTest", header="file,tags,usage"),
        CAT_DOG,
        1,
    ),
    "column test beside tags": (csv("cat,0", "dog,0", "cat,1", header="file,tags,test"), CAT_DOG, 1),
    "column test beside classes": (
        csv("1,0,0", "0,1,0", "0,0,0", "1,0,1", header="file,cat,dog,test"),
        CAT_DOG,
        1,
    ),
    "a column of the class train": (
        csv("1,0", "0,1", "0,0", header="file,cat,train"),
        ("cat", "train"),
        0,
    ),
    "splits in Chinese": (
        placed("\u8bad\u7ec3\u96c6/cat", "\u8bad\u7ec3\u96c6/dog", "\u6d4b\u8bd5\u96c6/cat"),
        CAT_DOG,
        2,
    ),
    "splits in wide letters": (placed("\uff54rain/cat", "train/dog", "\uff54est/cat"), CAT_DOG, 2),
    "splits in COCO's images": (
        coco(
            images=[
                {"id": i, "file_name": f"{'abc'[i]}.png", "split": "test" if i > 1 else "train"}
                for i in range(3)
            ]
        ),
        CAT_DOG,
        1,
    ),
    "column is_test": (csv("cat,0", "dog,False", "cat,1", header="file,tags,is_test"), CAT_DOG, 1),
    # names that look alike
    "composed and decomposed": (csv(NFC, NFD, "", ""), (NFC,), 0),
    "no-break space": (csv("hot\u00a0dog|x", "hot dog|x", "x", ""), ("hot dog", "x"), 0),
    "zero width": (csv("cat", "cat\u200b", "ca\u00adt", "\ufeffcat", "dog"), CAT_DOG, 0),
    "blank at the end of a folder": (placed("train/cat", "train/dog") | placed("val/cat "), CAT_DOG, 0),
    "decomposed files": (
        photos(f"{NFD}0", f"{NFD}1") | {"labels.csv": f"file,tags\n{NFC}0.png,cat\n{NFC}1.png,\n"},
        ("cat",),
        0,
    ),
    "escape sequences": (csv("\x1b[31mcat", "dog", ""), ("\\x1b[31mcat", "dog"), 0),
    "lone surrogate": (photos(*"ab") | {"labels.json": '{"a": ["\\ud800"], "b": []}'}, ("\\ud800",), 0),
    # lists written as text
    "NumPy's": (listed("['cat' 'dog']", "['cat']"), CAT_DOG, 0),
    "Python's set": (listed("{'cat', 'dog'}", "set()", "{'cat'}"), CAT_DOG, 0),
    "tuple": (listed("('cat', 'dog')", "('cat',)"), CAT_DOG, 0),
    "frozenset": (listed("frozenset({'cat', 'dog'})", "frozenset()"), CAT_DOG, 0),
    "pandas' Index": (
        listed("Index(['cat', 'dog'], dtype='object')", "Index([], dtype='object')"),
        CAT_DOG,
        0,
    ),
    "array": (listed("array(['cat', 'dog'], dtype='<U3')", "[np.str_('cat')]"), CAT_DOG, 0),
    "JSON": (listed('[""cat"", ""dog""]', "[]"), CAT_DOG, 0),
    "Label Studio": (
        csv('"{""choices"": [""cat"", ""dog""]}"', "hot dog", "", header="image,choice"),
        ("cat", "dog", "hot dog"),
        0,
    ),
    # one name a row, and missing values
    "classes.txt settles several words": (
        csv("traffic light", "stop sign", "") | {"classes.txt": "stop sign\ntraffic light\n"},
        ("stop sign", "traffic light"),
        0,
    ),
    "classes.txt settles commas": (
        csv('"apple, red"', "pear", "") | {"classes.txt": "pear\napple, red\n"},
        ("pear", "apple, red"),
        0,
    ),
    "a class that means missing": (
        photos(*"abc") | {"classes.txt": "N/A\n", "labels.json": '{"a": ["N/A"], "b": [], "c": []}'},
        ("N/A",),
        0,
    ),
    "_background_ of labelme": (
        csv("cat", "dog", "_background_") | {"classes.txt": "_background_\ncat\ndog\n"},
        CAT_DOG,
        0,
    ),
    "commas of Chinese and Arabic": (csv("cat\u3001dog", "dog\u3001cat", ""), CAT_DOG, 0),
    # forms
    "Excel's first line": (
        csv("cat", "", "") | {"labels.csv": "sep=;\r\nfile;tags\r\na;cat\r\nb;\r\nc;\r\n"},
        ("cat",),
        0,
    ),
    "pandas' index": (
        csv("1,0", "0,1", "0,0") | {"labels.csv": ",file,cat,dog\n0,a,1,0\n1,b,0,1\n2,c,0,0\n"},
        CAT_DOG,
        0,
    ),
    "COCO with ids as fractions": (coco(float, float), CAT_DOG, 0),
    "COCO with ids as text": (coco(int, str), CAT_DOG, 0),
    # own output
    "runs among photos": (
        csv("cat", "dog", "")
        | {
            "runs/inspect_data/1/.hydra/config.yaml": "",
            "runs/inspect_data/1/contact_sheet.png": GREY,
            "runs/sweep_report.png": GREY,
            "out/predictions.json": "{}",
            "out/masks/a.png": GREY,
        },
        CAT_DOG,
        0,
    ),
    "runs among classes": (
        placed("cat", "dog") | {"runs/train/1/.hydra/config.yaml": "", "runs/train/1/pictures/x.png": GREY},
        CAT_DOG,
        0,
    ),
    "lists of splits": (
        csv("cat", "dog", "cat") | {"train.txt": "a.png\nb\n", "Test.TXT": "/elsewhere/images/c.png\n\n"},
        CAT_DOG,
        1,
    ),
    "texts beside photos that are called like lists": (
        photos("test1", "train2")
        | {"test1.txt": "0 .5 .5 .1 .1", "train2.txt": "1 .5 .5 .1 .1", "classes.txt": "cat\ndog"},
        CAT_DOG,
        0,
    ),
    "lists of VOC": (
        csv("cat", "dog", "cat") | {"train.txt": "a\nb\n", "val.txt": "c", "trainval.txt": "a\nb\nc\n"},
        CAT_DOG,
        0,
    ),
    "a confidence of 0": (
        csv("bird,0", "cat,1", "dog,1.0", header="ImageID,LabelName,Confidence"),
        CAT_DOG,
        0,
    ),
    "names beside numbers": (csv("0,cat", "1,dog", header="file,class_id,class_name"), CAT_DOG, 0),
    "columns of several words": (csv("cat", "dog", header="Image Name,Class-Name"), CAT_DOG, 0),
    "Excel's first line in capitals": (
        csv("", "", "") | {"labels.csv": "SEP=;\r\nfile;tags\r\na;cat\r\nb;dog\r\nc;\r\n"},
        CAT_DOG,
        0,
    ),
    "Classes.txt with a comment": (
        csv("dog", "cat", "") | {"Classes.txt": "# in the order of the paper\ndog\ncat\n"},
        ("dog", "cat"),
        0,
    ),
    "numbers of two classes": (photos(*"ab") | {"x.json": '{"a": [1, 0], "b": [1]}'}, ("0", "1"), 0),
    "grey images of equal names in classes": (
        photos(*(f"{k}/{i}" for k in "012" for i in range(3)), mode="L"),
        ("0", "1", "2"),
        0,
    ),
}
"""By name: files, classes, and how many photos are of the split test."""

REFUSED = {
    "an unknown folder beside train": (
        placed("train/cat", "train/dog", "later/cat"),
        "a folder of a split and later/",
    ),
    "test beside classes": (
        placed("cat", "dog", "test"),
        r"has test/test0\.png in a folder of a split and cat/",
    ),
    "tests beside images": (
        csv("cat", "dog", names=["images/a", "test/b"]) | {"labels.csv": "file,tags\na.png,cat\nb.png,dog\n"},
        "of a split .*: move or rename, or add a column",
    ),
    "a photo in two lists": (
        csv("cat", "dog") | {"train.txt": "a\nb", "val.txt": "a"},
        r"val\.txt line 1 names a\.png, which is of train: delete",
    ),
    "a photo in no list": (csv("cat", "dog") | {"train.txt": "a"}, "has b in none of its lists of a split"),
    "a list of others": (csv("cat", "dog") | {"train.txt": "a\nx1"}, r"line 2 names x1, which is no image"),
    "a list against the column": (
        csv("cat,train", "dog,val", header="file,tags,split") | {"train.txt": "a\nb"},
        "says val, and another split's list names",
    ),
    "a table of a split beside another": (
        csv("cat", "dog") | {"test.csv": "file,tags\nb,dog\n"},
        "labels.csv and test.csv, need one tag file",
    ),
    "labelled and unlabelled": (
        placed("labeled/cat", "labeled/dog", "unlabeled"),
        "has a folder labeled, which is no class",
    ),
    "scores beside tags": (
        csv("cat,0.3", "dog,1", header="file,tag,score"),
        r"score '0\.3', need 0 or 1: keep the rows",
    ),
    "a vector of two": (photos(*"ab") | {"x.json": '{"a": [1, 0], "b": [0, 1]}'}, "a 0 or 1 for each class"),
    "two lists of classes": (
        csv("cat", "") | {"classes.txt": "cat", "Classes.txt": "cat"},
        "need one: delete the other",
    ),
    "twins": (placed("alphabet_train/a", "alphabet_test/b"), "alphabet_test and alphabet_train, which look"),
    "the same sub-folders": (placed("my_train/cat", "extra/cat"), "my_train/cat and extra/cat, which look"),
    "a column that trains on tests": (
        csv("cat,train", "dog,val", header="file,tags,split", names=["train/a", "test/b"])
        | {"labels.csv": "file,tags,split\ntrain/a.png,cat,train\ntest/b.png,dog,val\n"},
        "in a folder of tests: move",
    ),
    "column is_train": (csv("cat,1", "dog,0", header="file,tags,is_train"), "does not say whether"),
    "folder of masks": (
        photos("image/a", "image/b", ending=".jpg") | LABELS,
        "the folder mask with the names of the photos in image, which looks like masks",
    ),
    "masks in splits": (
        photos("train/images/a", "val/images/b", ending=".jpg")
        | {"train/masks/a.png": GREY, "val/masks/b.png": GREY},
        "the folder train/masks .* looks like masks",
    ),
    "masks of another name": (
        photos("input/a", "input/b") | {"output/a.png": GREY, "output/b.png": GREY},
        "the folder output with the names",
    ),
    "masks of many folders in one": (
        photos("cat/a", "dog/b", ending=".jpg")
        | {"annotations/a_mask.png": GREY, "annotations/b_mask.png": GREY},
        "the folder annotations with the names of photos in other folders",
    ),
    "several masks beside a photo": (
        photos("cat/a (1)", "dog/b", ending=".jpg")
        | {"cat/a (1)_mask.png": GREY, "cat/a (1)_mask_1.png": GREY},
        r"beside cat/a \(1\)\.jpg, which looks like masks",
    ),
    "masks in front": (
        photos("cat/a", "dog/b") | {"cat/mask_a.png": GREY, "dog/mask_b.png": GREY},
        r"cat/mask_a\.png beside cat/a\.png",
    ),
    "masks in TIFF": (
        photos("x/a", "x/b", ending=".jpg") | photos("y/a", "y/b", mode="L", ending=".tif"),
        "the folder y with the names of the photos in x",
    ),
    "masks in grey JPEG of any name": (
        photos("x/a", "x/b", size=(64, 64), ending=".jpg")
        | {f"y/{n}.jpg": np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8)) for n in "ab"},
        "the folder y with the names of the photos in x",
    ),
    "masks in JPEG": (
        photos("images/a", ending=".jpg") | photos("GT/a", mode="L", ending=".jpg"),
        "the folder GT ",
    ),
    "masks beside photos": (
        photos("cat/a", "dog/b") | {"cat/a_mask.png": GREY, "dog/b_mask.png": GREY},
        r"cat/a_mask\.png beside cat/a\.png, which looks like masks",
    ),
    "YOLO": (
        placed("train/images", "valid/images") | {"train/labels/train_images0.txt": "0 0.5 0.5 0.2 0.2\n"},
        "is a label of YOLO, whose classes have no names; add data.yaml",
    ),
    "spreadsheet": (photos(*"ab") | {"labels.xlsx": "PK"}, r"labels\.xlsx is no text; save"),
    "table elsewhere": (
        photos(*"ab") | {"tables/x.csv": "file,tags\n"},
        r"set data\.labels=tables/x\.csv if",
    ),
    "everything a folder deeper": (placed("pets/cat", "pets/dog"), r"has all photos in .*pets, need"),
    "columns of several splits": (
        csv("cat,1,0", "dog,0,1", header="file,tags,train,test"),
        "'train' and 'test' that name splits: write one",
    ),
    "numbers twice": (csv("1", "1.0", "2"), "'1' and '1\\.0': spell them alike"),
    "Cyrillic capitals": (csv("B", "\u0412", ""), r"'B' and '\\u0412': spell them alike"),
    "a vector of 0 and 1": (listed("[1, 0, 0]", "[0 1 0]"), "a 0 or 1 for each class"),
    "bytes as Python prints them": (listed("b'cat'", "b'dog'"), "which a program printed"),
    "scores": (csv("cat:0.9;dog:0.1", "dog:1.0"), "which a program printed"),
    "a category without a name": (
        coco(categories=[{"id": 0, "name": ""}, {"id": 1, "name": "x"}]),
        "'name' '' \\(text\\), need a name",
    ),
    "twin letters": (csv("cat", "c\u0430t", ""), r"'c(a|\\u0430)t' and 'c(a|\\u0430)t': spell"),
    "photos of one name": (
        photos(NFC, NFD) | {"labels.csv": "file,tags\n"},
        r"'Vo\\u0308gel\.png' and 'V\\xf6gel\.png'",
    ),
    "several words": (csv("traffic light", "stop sign", ""), "may be one tag or 2: set 'data.sep"),
    "glued list": (listed("['cat''dog']", "['cat']"), "broken list .*items without a separator"),
    "list without quotes": (listed("[cat, dog]"), "broken list"),
    "shortened list": (listed("['cat' ... 'dog']"), "broken list"),
    "counts as text": (listed("{'cat': 1}"), "broken list"),
    "torn list": (csv("\"'cat', 'dog']\"", "x", ""), "which a program printed"),
    "255 classes": (
        csv("cat", "") | {"classes.txt": "cat\n" + "\n".join(f"c{i}" for i in range(254))},
        "has 255 classes, need 254 at most",
    ),
    "thousands of columns": (
        csv("0") | {"labels.csv": "file," + ",".join(f"c{i}" for i in range(999)) + "\na" + ",0" * 999},
        "has 999 columns beside",
    ),
    "COCO's head alone": (photos("a") | {"x.json": '{"info": {}, "licenses": []}'}, "no list 'images', need"),
    "COCO with a wrong id": (
        coco(annotations=[{"image_id": 7, "category_id": 0}]),
        r"image_id 7, .* \(as 0 is\)",
    ),
    "COCO with an id of another kind": (coco(images=[{"id": None, "file_name": "a"}]), r"'id' None \(null\)"),
    "COCO with an id twice": (coco(images=[{"id": 0, "file_name": n} for n in "ab"]), "two images of one id"),
    "mapping to objects": (
        photos("a") | {"x.json": '{"a.png": {"cat": 1}}'},
        r"entry 'a\.png' holds an object",
    ),
    "a number of thousands of digits": (
        photos("a") | {"x.json": f'{{"a.png": [{"9" * 5000}]}}'},
        "number that is too",
    ),
    "classes in another encoding": (
        csv("cat", "") | {"classes.txt": np.zeros((1, 1), np.uint8)},
        "is not UTF-8",
    ),
    "column without a name": (
        csv("cat", "") | {"labels.csv": "file,tags,\na,cat,x\n"},
        "no name for column 3",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read(tmp_path, name):
    files, classes, tests = READ[name]
    write(tmp_path, files)
    content = read_folder(tmp_path, val_fraction=0.3)
    assert content.class_names == classes
    assert content.splits.count("test") == tests
    assert {"train", "val"} <= set(content.splits)
    held = [
        split for file, split in zip(content.files, content.splits, strict=True) if "est/" in file.lower()
    ]
    assert "class" in name or set(held) <= {"test"}
    assert content.summary.isprintable()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    files, pattern = REFUSED[name]
    if name == "classes in another encoding":
        write(tmp_path, {key: value for key, value in files.items() if key != "classes.txt"})
        (tmp_path / "classes.txt").write_bytes("caf\u00e9".encode("latin-1"))
    else:
        write(tmp_path, files)
    with pytest.raises(UserError, match=pattern) as error:
        read_folder(tmp_path)
    assert str(error.value).isprintable()
    assert ": " in str(error.value)


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "None", "N/A", "<NA>", "null", "-", "?", "\u2014", "#REF!", "(null)", "\\N"]
)
def test_missing_values_are_no_tags_and_said(tmp_path, word):
    write(tmp_path, csv(word, "cat", word, "dog"))
    content = read_folder(tmp_path)
    assert content.class_names == CAT_DOG
    assert content.doubts[0].endswith("for 2 images, read as no tag: list it in classes.txt if it is a class")


@pytest.mark.parametrize("words", ["01", ("yes", "no"), ("True", "False")])
def test_answers_are_classes_only_with_a_warning(tmp_path, words):
    write(tmp_path, csv(words[0], words[1], words[0], header="id,label"))
    content = read_folder(tmp_path)
    assert len(content.class_names) == 2
    assert "call the column by that class, as in `id,cat`: 0 is then background" in content.doubts[0]


def test_numbers_of_classes_are_classes_and_said(tmp_path):
    write(tmp_path, csv("0", "1", "0", header="file,class_id"))
    content = read_folder(tmp_path)
    assert content.class_names == ("0", "1")
    assert "has 0 and 1 in column 'class_id', read as classes" in content.doubts[0]


def looked_through(root, **options):
    content = read_folder(root, **options)
    sets = {
        name: TaggedFolder(content, name, bool(content.masks) and name == "val") for name in ("train", "val")
    }
    splits = [
        Split(name, own.class_names, own.labels, list(look_at_all(own, 0))) for name, own in sets.items()
    ]
    return splits, [
        finding for finding in find_problems(splits) if finding.kind in ("unreadable", "mask", "flat")
    ]


def test_masks_of_0_and_255_are_errors_with_any_number_of_classes(tmp_path):
    half = np.repeat(np.array([[0, 255]], np.uint8), 4, 1).repeat(8, 0)
    write(tmp_path, csv("cat", "dog", "") | {f"masks/{n}.png": half for n in "abc"})
    _, findings = looked_through(tmp_path, val_fraction=0.9)
    assert [(each.level, each.message.partition("masks/")[2]) for each in findings] == [
        ("error", "a.png has the labels 0 and 255, need 1 for cat: change it"),
        ("error", "b.png has the labels 0 and 255, need 2 for dog: change it"),
    ]


def test_pixels_without_a_known_range_are_errors_and_one_colour_is_a_warning(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    files = {
        "cat/a.tif": ramp,
        "cat/b.png": (ramp * 4095).astype(np.uint16),
        "dog/c.tif": (ramp * 9).astype(np.int32),
    }
    write(tmp_path, files | {"dog/d.png": np.full((8, 8, 3), 7, np.uint8)} | placed("owl"))
    _, findings = looked_through(tmp_path)
    messages = sorted((each.level, each.message.partition(str(tmp_path))[2]) for each in findings)
    for (level, message), (wanted, pattern) in zip(messages, [
        ("error", "/cat/a.tif has 32-bit fractions for pixels, need 8 or 16 bits"),
        ("error", "/cat/b.png has pixels of 16 bits, none above 4095, as if of 12 bits"),
        ("error", "/dog/c.tif has 32-bit numbers for pixels"),
        ("warning", "/dog/d.png is read as one colour, or nearly so"),
    ], strict=True):  # fmt: skip
        assert level == wanted
        assert message.startswith(pattern)


def test_the_same_folders_in_each_class_are_doubted(tmp_path):
    write(tmp_path, placed("fold_0/cat", "fold_0/dog", "fold_1/cat"))
    content = read_folder(tmp_path)
    assert content.class_names == ("fold_0", "fold_1")
    assert "has a folder cat in each of fold_0, fold_1, read as classes" in content.doubts[0]
