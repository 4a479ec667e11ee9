"""Folders and tables whose meaning is easily missed: split lists, certainties, numbers, masks by no name."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.folder.content import read_folder
from wsss_afa.data.images import read_image
from wsss_afa.errors import UserError

NAMES = "abcdef"


@pytest.fixture
def root(tmp_path):
    """Six photos; a, c and e are tagged as cats, the others as dogs."""
    for name in NAMES:
        noise(tmp_path / f"{name}.jpg")
    write(tmp_path / "labels.csv", "file,tags", *(f"{n}.jpg,{'cat' if n in 'ace' else 'dog'}" for n in NAMES))
    return tmp_path


def noise(path, mode="RGB", shape=(16, 20, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(map(ord, str(path.name)))).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write(path, *lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)


def splits(root):
    content = read_folder(root)
    return "".join(split[1] for split in content.splits), content.summary


@pytest.mark.parametrize("folder", ["", "lists/", "ImageSets/Main/"])
@pytest.mark.parametrize("form", ["{}", "{}.jpg", "photos/{}.jpg 1", "C:\\photos\\{}.jpg"])
def test_lists_of_photos_are_splits(root, folder, form):
    for name, own in {"train": "abcd", "val": "e", "test": "f", "trainval": "abcde"}.items():
        write(root / f"{folder}{name}.txt", *map(form.format, own))
    found, summary = splits(root)
    assert found == "rrrrae"
    assert f"{folder}train.txt" in summary
    assert "trainval" not in summary


def test_a_list_of_all_photos_is_no_split_and_a_text_is_no_list(root):
    write(root / "train.txt", *NAMES)
    write(root / "test.txt", "These photos are a test of", "my new camera.")
    assert splits(root)[0].count("a") == 1, "one of the six validates, as where nothing is said"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": "abc", "val": "de"}, r"has 1 photos, f\.jpg first, that train\.txt and val\.txt do not"),
        ({"train": "abcdef", "test": "f"}, r"train\.txt line 6 and .*test\.txt list f\.jpg, need one split"),
        ({"train": "abcdez", "test": "f"}, r"train\.txt line 6 names z, which is no image"),
    ],
)
def test_lists_that_do_not_fit_are_refused(root, lists, message):
    for name, own in lists.items():
        write(root / f"{name}.txt", *own)
    with pytest.raises(UserError, match=message):
        read_folder(root)


def test_a_certainty_of_0_is_no_tag(root):
    rows = (
        "a.jpg,cat,1",
        "b.jpg,cat,0",
        "b.jpg,dog,1",
        "c.jpg,cat,1",
        "d.jpg,dog,0",
        "e.jpg,cat,1",
        "f.jpg,dog,1",
    )
    write(root / "labels.csv", "image_id,LabelName,Confidence", *rows)
    content = read_folder(root)
    assert content.class_names == ("cat", "dog")
    assert content.labels.astype(int).tolist() == [[1, 0], [0, 1], [1, 0], [0, 0], [1, 0], [0, 1]]
    assert not content.doubts
    write(root / "labels.csv", "file,tag,score", *(f"{n}.jpg,cat,{0.2 * i}" for i, n in enumerate(NAMES)))
    content = read_folder(root)
    assert content.labels[:, 0].astype(int).tolist() == [0, 1, 1, 1, 1, 1]
    assert "'score', all above 0 read as tags" in content.doubts[0]


def test_a_number_of_a_class_is_its_name(root):
    write(root / "labels.csv", "file,class_id", *(f"{n}.jpg,{i % 2}" for i, n in enumerate(NAMES)))
    content = read_folder(root)
    assert content.class_names == ("0", "1")
    assert "read as classes" in content.doubts[0]


@pytest.mark.parametrize("rows", [('"[1, 0]"', '"[0, 1]"'), ('"[0 1]"', '"[1 0]"'), ("1;0", "0;1")])
def test_flags_of_two_classes_are_no_names(root, rows):
    write(root / "labels.csv", "file,labels", *(f"{n}.jpg,{rows[i % 2]}" for i, n in enumerate(NAMES)))
    with pytest.raises(UserError, match="line 2 has a 0 or 1 for each class in 'labels'"):
        read_folder(root)


def test_photos_without_tags_are_no_class(root):
    (root / "labels.csv").unlink()
    for name in ("cat", "dog", "Un_labelled"):
        noise(root / name / f"{name}1.jpg")
    for name in NAMES:
        (root / f"{name}.jpg").unlink()
    with pytest.raises(UserError, match="has a folder Un_labelled, whose photos would be a class"):
        read_folder(root)


@pytest.mark.parametrize("name", ["Classes.txt", "CLASSES.TXT"])
def test_the_list_of_classes_in_any_letters_and_with_comments(root, name):
    write(root / name, "# of our project, in order", "dog", "cat", "#1 fan")
    assert read_folder(root).class_names == ("dog", "cat", "#1 fan")


def test_a_separator_in_capitals_and_xml_in_utf_16(root):
    write(
        root / "labels.csv", "SEP=|", "file|tags", *(f"{n}.jpg|{'cat' if n in 'ace' else ''}" for n in NAMES)
    )
    assert read_folder(root).class_names == ("cat",)
    (root / "labels.csv").unlink()
    tag = {True: '<tag label="cat"/>', False: ""}
    images = (f'<image id="{i}" name="{n}.jpg">{tag[n in "ace"]}</image>' for i, n in enumerate(NAMES))
    head = '<?xml version="1.0" encoding="utf-16"?>'
    write(root / "annotations.xml", head, "<annotations>", *images, "</annotations>", encoding="utf-16")
    assert read_folder(root).labels[:, 0].tolist() == [True, False] * 3


def test_grey_jpegs_of_labels_are_masks_whatever_their_folder_is_called(root):
    (root / "labels.csv").unlink()
    for name in NAMES:
        (root / f"{name}.jpg").unlink()
        noise(root / "one" / f"{name}.jpg", shape=(64, 64, 3))
        label = np.zeros((64, 64), np.uint8)
        label[8:40, 16:48] = 255
        (root / "two").mkdir(exist_ok=True)
        Image.fromarray(label).save(root / "two" / f"{name}.jpg")
    with pytest.raises(UserError, match="the folder two with the names of the photos in one"):
        read_folder(root)


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_12_bits_in_16_would_be_black(tmp_path, bits):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (16, 20, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    if bits == 16:
        assert read_image(tmp_path / "a.png").mean() > 100
    else:
        with pytest.raises(UserError, match="16 bits, none above 4096, and would be almost black"):
            read_image(tmp_path / "a.png")
