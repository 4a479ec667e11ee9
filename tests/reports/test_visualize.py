"""Pictures: colours against PASCAL's published ones and matplotlib's map, files complete or absent."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from wsss_afa.reports.visualize import Panel, paint_heat, paint_label, picture_grid, save_figure, voc_palette

# The colours of PASCAL VOC's label images, as everybody who has opened one knows them.
KNOWN = {
    0: (0, 0, 0),
    1: (128, 0, 0),  # aeroplane
    2: (0, 128, 0),
    3: (128, 128, 0),
    7: (128, 128, 128),
    8: (64, 0, 0),
    12: (64, 0, 128),  # dog
    15: (192, 128, 128),  # person
    20: (0, 64, 128),  # tv monitor
    255: (224, 224, 192),  # unlabelled
}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    return np.stack([image.mean(axis=2).round().astype(np.uint8)] * 3, axis=2)


def test_palette():
    palette = voc_palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert {index: tuple(palette[index].tolist()) for index in KNOWN} == KNOWN
    assert len(np.unique(palette, axis=0)) == 256
    assert np.array_equal(voc_palette(21), palette[:21])


def test_labels_are_laid_over(image):
    label = np.zeros((4, 5), np.int64)
    label[0, 0], label[1, 1], label[2, 2] = 15, 255, 1
    painted = paint_label(image, label, alpha=1.0)
    assert (painted.shape, painted.dtype) == (image.shape, np.uint8)
    assert painted[0, 0].tolist() == [192, 128, 128]
    assert painted[1, 1].tolist() == [255, 255, 255]
    assert painted[2, 2].tolist() == [128, 0, 0]
    assert np.array_equal(painted[label == 0], grey(image)[label == 0])


def test_labels_shine_through(image):
    label = np.ones((4, 5), np.uint8)
    painted = paint_label(image, label, alpha=0.25)
    expected = 0.75 * image.mean(axis=2, keepdims=True) + 0.25 * np.array([128, 0, 0])
    assert np.abs(painted - expected).max() <= 0.5 + 1e-4
    assert np.array_equal(paint_label(image, label, alpha=0.0), grey(image))


def test_heat(image):
    heat = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    painted = paint_heat(image, heat, alpha=1.0)
    expected = matplotlib.colormaps["jet"](heat, bytes=True)[..., :3]
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert painted[0, 0, 2] > painted[0, 0, 0]  # cold is blue
    assert painted[-1, -1, 0] > painted[-1, -1, 2]  # hot is red
    assert np.array_equal(paint_heat(image, heat, alpha=0.0), image)


def test_painting_leaves_its_input(image):
    before, label = image.copy(), np.full((4, 5), 255)
    paint_label(image, label)
    paint_heat(image, np.zeros((4, 5)))
    assert np.array_equal(image, before)
    assert (label == 255).all()


@pytest.fixture
def figure(image) -> Figure:
    full = [Panel("image", image), Panel("label", 255 - image)]
    return picture_grid([("first.jpg", full), ("second.jpg", full[:1])], [(1, "cat"), (15, "dog")])


def test_grid(figure, image):
    (axis,) = figure.axes
    shown = [picture.get_array() for picture in axis.images]
    assert [np.array_equal(pixels, image) for pixels in shown] == [True, False, True]
    boxes = [picture.get_extent() for picture in axis.images]  # left, right, bottom, top
    assert boxes[0][1] < boxes[1][0], "side by side"
    assert boxes[0][2:] == boxes[1][2:]
    assert boxes[2][3] < boxes[0][2], "below"
    for left, right, bottom, top in boxes:
        assert (top - bottom) / (right - left) == pytest.approx(4 / 5), "not distorted"
    words = {text.get_text(): text.get_position() for text in axis.texts}
    assert list(words) == ["image", "label", "first.jpg", "second.jpg"]
    assert words["image"][1] > boxes[0][3]
    assert boxes[2][3] < words["first.jpg"][1] < boxes[0][2]


def test_legend(figure):
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "ignored"]
    colours = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    assert np.round(np.multiply(colours, 255)).tolist() == [[128, 0, 0], [192, 128, 128], [255, 255, 255]]


def test_one_picture_of_twenty_classes(image, tmp_path):
    figure = picture_grid([("a", [Panel("image", image)])], [(i, f"class {i}") for i in range(1, 21)])
    save_figure(figure, tmp_path / "one.png")
    assert len(figure.legends[0].get_texts()) == 21


def test_saved_files(figure, tmp_path):
    path = tmp_path / "new" / "folder" / "grid.png"
    save_figure(figure, path)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert saved.size == tuple((figure.get_size_inches() * figure.dpi).round().astype(int))
        assert len(saved.convert("RGB").getcolors(1 << 20)) > 10
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_a_failed_write_leaves_the_old_file(figure, tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail(target, **_):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
