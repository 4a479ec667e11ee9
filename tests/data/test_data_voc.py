"""VOC: lists, tags and masks, on a generated folder in its layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.voc import VOC, VOC_CLASSES, parse_tags
from wsss_afa.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "voc_mini" / "VOCdevkit" / "VOC2012"
TAGS = {"one": ["dog"], "two": ["person", "cat", "person"], "three": []}
SIZES = {"one": (20, 30), "two": (33, 17), "three": (16, 16)}


def annotation(tags):
    objects = "".join(
        f"<object><name>{tag}</name><difficult>1</difficult><part><name>head</name></part></object>"
        for tag in tags
    )
    return f"<annotation><source><name>x</name></source>{objects}</annotation>"


@pytest.fixture
def root(tmp_path):
    """Three images, one of them grey; masks of values 0, 12 and 255."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        image = Image.new("L" if name == "two" else "RGB", (width, height), 90)
        image.save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(TAGS[name]))
        save_mask(tmp_path / "SegmentationClassAug" / f"{name}.png", mask_of(name))
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(SIZES) + "\n")
    return tmp_path


def mask_of(name):
    mask = np.zeros(SIZES[name], np.uint8)
    mask[2:9, 3:12] = 12
    mask[0] = 255
    return mask


def save_mask(path, mask):
    image = Image.fromarray(mask)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def test_samples(root):
    data = VOC(root, "val", with_mask=True)
    assert len(data) == 3
    for sample in (data[i] for i in range(3)):
        assert sample["image"].shape == (*SIZES[sample["name"]], 3)
        assert sample["class_label"].dtype == np.float32
        assert {VOC_CLASSES[c] for c in np.flatnonzero(sample["class_label"])} == set(TAGS[sample["name"]])
        assert np.array_equal(sample["mask"], mask_of(sample["name"]))


def test_training_opens_no_mask(root):
    for path in (root / "SegmentationClassAug").iterdir():
        path.write_bytes(b"corrupt")
    assert all("mask" not in VOC(root, "val")[i] for i in range(3))
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    (root / "SegmentationClassAug").rmdir()
    assert len(VOC(root, "val")) == 3
    with pytest.raises(UserError, match="lacks 3 of the 3"):
        VOC(root, "val", with_mask=True)


def test_masks_come_from_the_folder_that_has_them_all(root):
    (root / "SegmentationClass").mkdir()
    save_mask(root / "SegmentationClass" / "one.png", np.full(SIZES["one"], 5, np.uint8))
    assert VOC(root, "val", with_mask=True)[0]["mask"].max() == 255
    for name in ("two", "three"):
        save_mask(root / "SegmentationClass" / f"{name}.png", mask_of(name))
    assert (VOC(root, "val", with_mask=True)[0]["mask"] == 5).all()


def test_lists_may_give_paths(root):
    (root / "ImageSets/Segmentation/mine.txt").write_text(
        "/JPEGImages/two.jpg /SegmentationClassAug/two.png\n\n"
    )
    assert VOC(root, "mine").names == ["two"]


@pytest.mark.parametrize(
    ("split", "length"), [("train", 1464), ("train_aug", 10582), ("val", 1449), ("test", 1456)]
)
def test_packaged_lists_have_the_official_sizes(tmp_path, split, length):
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(UserError, match=f"lacks {length} of the {length} files"):
        VOC(tmp_path, split)


def test_packaged_tags_are_used_without_annotations(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, split in (("2007_000032", "mine"), ("2008_000006", "test")):
        Image.new("RGB", (4, 4)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(name)
    label = VOC(tmp_path, "mine")[0]["class_label"]
    assert [VOC_CLASSES[c] for c in np.flatnonzero(label)] == ["aeroplane", "person"]
    assert not VOC(tmp_path, "test")[0]["class_label"].any()


def test_mistakes(root):
    with pytest.raises(UserError, match=r"data.root=.*nowhere.*VOC2012/JPEGImages"):
        VOC(root / "nowhere", "val")
    with pytest.raises(UserError, match="split 'vall' has no list"):
        VOC(root, "vall")
    save_mask(root / "SegmentationClassAug" / "one.png", np.full(SIZES["one"], 21, np.uint8))
    with pytest.raises(UserError, match="label 21"):
        VOC(root, "val", with_mask=True)[0]
    (root / "ImageSets/Segmentation/empty.txt").write_text("\n")
    with pytest.raises(UserError, match="lists 0 images"):
        VOC(root, "empty")


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY x "dog">]><annotation><object><name>&x;</name></object></annotation>',
        "<annotation><object>",
        annotation(["unicorn"]),
    ],
)
def test_annotations_that_cannot_be_trusted(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=r"a\.xml"):
        parse_tags(tmp_path / "a.xml")
    with pytest.raises(UserError, match=r"b\.xml"):
        parse_tags(tmp_path / "b.xml")


@pytest.mark.skipif(not REAL.is_dir(), reason="real photographs are not there")
def test_real_images():
    """Most tags of real images appear in their masks and the other way round."""
    data = VOC(REAL, "val", with_mask=True)
    agree = []
    for index in range(0, len(data), 6):
        sample = data[index]
        in_mask = np.isin(np.arange(1, 21), sample["mask"])
        agree.append(float((in_mask == sample["class_label"].astype(bool)).all()))
    assert len(data) == 69
    assert np.mean(agree) > 0.7
