"""Labels in the forms of other tools, read back by somebody else: exact, whatever is drawn."""

from __future__ import annotations

import io
import json
import zipfile
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from matplotlib.path import Path as Outline
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from wsss_afa.errors import UserError
from wsss_afa.inference.formats.label_studio import encode
from wsss_afa.inference.formats.labelled import from_names
from wsss_afa.inference.formats.polygons import polygons
from wsss_afa.inference.formats.writers import check_formats, write_formats
from wsss_afa.reports.visualize import save_label, voc_palette

NAMES = ("cat", 'hot, "dog" & <b>', "müll: 犬", "#4")
FORMATS = ("coco", "yolo", "labelstudio", "labelme")


def ring(size=15):
    """A square with two holes, one of them a pixel, and an island in the other."""
    mask = np.zeros((size, size + 4), bool)
    mask[1:-1, 1:-3] = True
    mask[3:9, 3:9] = False
    mask[5:7, 5:7] = True
    mask[11, 11] = False
    return mask


def diagonal(size=9):
    """Pixels that touch at corners alone, and a hole that is closed by a corner."""
    mask = np.eye(size, size + 2, dtype=bool)
    mask[2:5, 2:5] = [[1, 1, 1], [1, 0, 1], [1, 1, 0]]
    return mask


def noise(seed, share):
    return np.random.default_rng(seed).random((31, 37)) < share


MASKS = {
    "ring": ring(), "diagonal": diagonal(), "pixel": np.eye(1, 7, dtype=bool), "all": np.ones((4, 6), bool),
    "none": np.zeros((3, 3), bool), "line": np.ones((1, 9), bool), "rim": ~ring(),
    **{f"noise of {share}": noise(5, share) for share in (0.2, 0.5, 0.8, 0.97)},
}  # fmt: skip


def by_centres(mask, shapes):
    """Which pixels' centres lie in a polygon."""
    rows, columns = np.indices(mask.shape) + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], 1)
    inside = [Outline(shape, closed=False).contains_points(centres) for shape in shapes]
    return np.any([np.zeros(mask.size, bool), *inside], axis=0).reshape(mask.shape)


def as_labelme(mask, shapes):
    """As LabelMe draws a shape into a mask: line and inside, by Pillow."""
    picture = Image.new("1", mask.shape[::-1])
    for shape in shapes:
        if len(shape) > 2:
            ImageDraw.Draw(picture).polygon([tuple(point) for point in shape], outline=1, fill=1)
    return np.array(picture)


def as_ultralytics(mask, shapes):
    """As Ultralytics does: fractions cut off, by OpenCV."""
    picture = np.zeros(mask.shape, np.uint8)
    for shape in shapes:
        cv2.fillPoly(picture, [np.array(shape, np.int32)], 1)
    return picture.astype(bool)


@pytest.mark.parametrize("draw", [by_centres, as_labelme, as_ultralytics])
@pytest.mark.parametrize("name", MASKS)
def test_polygons_cover_a_mask_exactly(name, draw):
    mask = MASKS[name]
    shapes = polygons(mask)
    assert np.array_equal(draw(mask, shapes), mask)
    assert all(len(shape) > 2 for shape in shapes)
    assert sum(by_centres(mask, [shape]).sum() for shape in shapes) == mask.sum()  # none lies on another


class Bits:
    def __init__(self, values):
        self.text, self.place = "".join(f"{value:08b}" for value in values), 0

    def read(self, count):
        self.place += count
        return int(self.text[self.place - count : self.place], 2)


def decode(values):
    """What rle-pack, which Label Studio draws brushes with, says of its form: runs and literal values."""
    bits = Bits(values)
    total, width, sizes = bits.read(32), bits.read(5) + 1, [bits.read(4) + 1 for _ in range(4)]
    found = []
    while len(found) < total:
        repeated, length = bits.read(1), bits.read(sizes[bits.read(2)]) + 1
        found += [bits.read(width)] * length if repeated else [bits.read(width) for _ in range(length)]
    return found


def test_the_decoder_reads_what_label_studios_converter_tests():
    packed = [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]
    assert decode(packed) == [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4]


def test_a_brush_begins_as_label_studio_writes_it():
    """The first bytes of a published project's file of 3332 x 2527 pixels, whose first run is background."""
    assert encode(np.zeros((2527, 3332), bool))[:7] == [2, 1, 233, 240, 57, 27, 255]


@pytest.mark.parametrize("name", MASKS)
def test_brushes_are_exact(name):
    mask = MASKS[name]
    found = np.array(decode(encode(mask))).reshape(*mask.shape, 4)
    assert np.array_equal(found, 255 * mask[..., None].repeat(4, 2))


def test_long_runs_of_a_brush():
    mask = np.zeros((300, 300), bool)
    mask[299, 290:] = True
    assert (np.array(decode(encode(mask)))[3::4].reshape(300, 300) > 0).tolist() == mask.tolist()


# All forms of a folder of labels


@pytest.fixture
def labelled(tmp_path):
    """Three images with labels: of several classes, one with ignored pixels, one of background alone."""
    labels = {
        "a": np.zeros((15, 19), np.uint8),
        "sub/b c": np.zeros((31, 37), np.uint8),
        "é": np.zeros((8, 9), np.uint8),
    }
    labels["a"][ring()] = 2
    labels["a"][5:7, 5:7] = 1
    labels["a"][0, :4] = 255
    labels["sub/b c"][noise(1, 0.6)] = 3
    labels["sub/b c"][noise(2, 0.2)] = 4
    photos, written = {}, []
    for name, label in labels.items():
        photos[name] = tmp_path / "my photos" / f"{name}.jpg"
        photos[name].parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", label.shape[::-1]).save(photos[name])
        written.append(tmp_path / "masks" / f"{name}.png")
        save_label(label, written[-1])
    return labels, from_names(list(labels), written, photos)


def written(tmp_path, labelled, *formats, names=NAMES):
    list(write_formats(formats, tmp_path / "out", labelled, names))
    return tmp_path / "out"


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under NumPy 2
def test_coco(labelled, tmp_path):
    labels, images = labelled
    coco = COCO(str(written(tmp_path, images, "coco") / "coco.json"))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == [*NAMES, "ignored"]
    ids = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    assert set(ids) == {"a.jpg", "sub/b c.jpg", "é.jpg"}
    for name, label in labels.items():
        found = np.zeros_like(label)
        for annotation in coco.loadAnns(coco.getAnnIds(ids[f"{name}.jpg"])):
            found[coco.annToMask(annotation).astype(bool)] = annotation["category_id"]
        assert np.array_equal(found, label)


def test_yolo(labelled, tmp_path):
    labels, images = labelled
    root = written(tmp_path, images, "yolo") / "yolo"
    names = OmegaConf.to_container(OmegaConf.load(root / "data.yaml"))["names"]
    assert names == dict(enumerate(NAMES))
    for name, label in labels.items():
        found = np.zeros_like(label)
        for line in (root / "labels/train" / f"{name}.txt").read_text().splitlines():
            value, *numbers = line.split()
            shape = np.array(numbers, float).reshape(-1, 2)
            assert ((shape >= 0) & (shape <= 1)).all()
            found[as_ultralytics(label, [shape * label.shape[::-1]])] = int(value) + 1
        assert np.array_equal(found, np.where(label == 255, 0, label))


def test_labelme(labelled, tmp_path):
    labels, images = labelled
    root = written(tmp_path, images, "labelme") / "labelme"
    assert (root / "labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)
    for name, label in labels.items():
        path = root / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        assert (content["imageHeight"], content["imageWidth"]) == label.shape
        assert (path.parent / content["imagePath"]).resolve() == tmp_path / "my photos" / f"{name}.jpg"
        found = np.zeros_like(label)
        for shape in content["shapes"]:
            assert shape["shape_type"] == "polygon"
            found[as_labelme(label, [shape["points"]])] = NAMES.index(shape["label"]) + 1
        assert np.array_equal(found, np.where(label == 255, 0, label))


def test_label_studio(labelled, tmp_path):
    labels, images = labelled
    out = written(tmp_path, images, "labelstudio")
    interface = ElementTree.fromstring((out / "label_studio.xml").read_text(encoding="utf-8"))  # noqa: S314
    assert [each.get("value") for each in interface.iter("Label")] == list(NAMES)
    tasks = json.loads((out / "label_studio.json").read_text(encoding="utf-8"))
    addresses = ("my%20photos/a.jpg", "my%20photos/sub/b%20c.jpg", "my%20photos/%C3%A9.jpg")
    for task, address, label in zip(tasks, addresses, labels.values(), strict=True):
        assert task["data"]["image"] == f"/data/local-files/?d={address}"
        found = np.zeros_like(label)
        for region in task["predictions"][0]["result"]:
            assert (region["original_height"], region["original_width"]) == label.shape
            assert interface.find("BrushLabels").get("name") == region["from_name"]
            drawn = np.array(decode(region["value"]["rle"])).reshape(*label.shape, 4)[..., 3]
            found[drawn > 0] = NAMES.index(region["value"]["brushlabels"][0]) + 1
        assert np.array_equal(found, np.where(label == 255, 0, label))


def test_cvat(labelled, tmp_path):
    labels, images = labelled
    names = ("cat", "hot, dog", "müll", "x")
    check_formats(["png", "cvat"], names)
    with zipfile.ZipFile(written(tmp_path, images, "cvat", names=names) / "cvat.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        colours = {tuple(map(int, line.split(":")[1].split(","))): line.split(":")[0] for line in lines[1:]}
        assert list(colours.values()) == ["background", *names]
        assert archive.read("ImageSets/Segmentation/default.txt").decode().splitlines() == [
            "a",
            '"sub/b c"',
            "é",
        ]
        for name, label in labels.items():
            with Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png"))) as picture:
                assert picture.mode == "RGB"
                pixels = np.array(picture)
            for value, named in enumerate(["background", *names]):
                drawn = (pixels == voc_palette()[value]).all(2)
                assert np.array_equal(drawn, np.where(label == 255, 0, label) == value), named
                assert colours[tuple(voc_palette()[value].tolist())] == named


@pytest.mark.parametrize("names", [("a:b",), ("#a",)])
def test_names_that_cvat_cannot_hold(names):
    with pytest.raises(UserError, match=r"format=cvat: the class .* choose another format"):
        check_formats(["png", "cvat"], names)


@pytest.mark.parametrize("formats", [["coco"], ["png", "jpg"], "png", []])
def test_formats_that_are_not_known(formats):
    with pytest.raises(
        UserError, match=r"need \[png\], or \[png, coco\] with any of coco, yolo, cvat, labelst"
    ):
        check_formats(formats, NAMES)
