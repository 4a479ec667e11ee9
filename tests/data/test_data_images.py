"""Decoding: every colour mode to RGB in stored pixel order, and one line for what cannot be read."""

import cv2
import numpy as np
import pytest
from PIL import Image

from wsss_afa.data.images import read_image, read_mask, require_files, shrink
from wsss_afa.errors import UserError


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png")],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (7, 5), (204, 204, 204)).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((5, 7, 3), np.uint8)
    assert image.flags.writeable
    if mode != "1":
        assert np.abs(image.astype(int) - 204).max() <= 3


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    Image.new("RGB", (7, 5)).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").shape == (5, 7, 3)


def test_unreadable_files_are_named_in_one_line(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "truncated.jpg").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("truncated.jpg", "text.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name) as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_that_hold_12_are_refused(tmp_path, suffix):
    path, ramp = tmp_path / f"image.{suffix}", np.linspace(0, 1, 48).reshape(4, 4, 3)
    cv2.imwrite(str(path), (ramp * 65535).astype(np.uint16))
    assert np.abs(read_image(path)[..., ::-1] - ramp * 255).max() <= 1
    cv2.imwrite(str(path), (ramp * 4095).astype(np.uint16))
    with pytest.raises(UserError, match=r"none above 4095, as if of 12 bits, and would be"):
        read_image(path)


def test_mask_keeps_palette_values(tmp_path):
    labels = np.array([[0, 3, 255], [20, 1, 1]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette(list(np.random.default_rng(0).integers(0, 255, 768)))
    image.save(tmp_path / "mask.png")
    assert image.mode == "P"
    assert np.array_equal(read_mask(tmp_path / "mask.png", (2, 3)), labels)


def test_coloured_or_misshapen_masks_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "colour.png")
    Image.new("L", (4, 4)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match="palette"):
        read_mask(tmp_path / "colour.png", (4, 4))
    with pytest.raises(UserError, match="replace one of them"):
        read_mask(tmp_path / "small.png", (4, 5))


def test_missing_files_are_counted(tmp_path):
    (tmp_path / "a").touch()
    require_files(tmp_path, ["a"], "val")
    with pytest.raises(UserError, match=r"lacks 2 of the 3 files of split 'val', b first"):
        require_files(tmp_path, ["a", "b", "c"], "val")
    with pytest.raises(UserError, match="lacks 1 of the 1"):
        require_files(tmp_path / "nowhere", ["a"], "val")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(900, 600), (601, 899), (100, 50)])
def test_a_long_side_is_reduced_as_pillow_reduces_it(tmp_path, suffix, size):
    """Partly decoded or not, the picture is that of a whole decoding averaged over areas."""
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 250 / sum(size)
    pixels = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"image.{suffix}", quality=95)
    reduced = read_image(tmp_path / f"image.{suffix}", max_side=150)
    ratio = min(1, 150 / max(size))
    expected = Image.fromarray(pixels).resize([round(side * ratio) for side in size], Image.Resampling.BOX)
    assert reduced.shape == np.asarray(expected).shape
    assert np.abs(reduced.astype(int) - np.asarray(expected)).mean() < 2


def test_labels_are_picked_and_not_averaged():
    mask = np.full((90, 60), 7, np.uint8)
    mask[:, 30:] = 255
    small = shrink(mask, 45, nearest=True)
    assert small.shape == (45, 30)
    assert np.array_equal(np.unique(small), [7, 255])
    assert (small[:, :15] == 7).all()
    assert shrink(mask, 90) is mask


def test_an_image_on_its_side_is_reduced_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (601, 899)).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg", upright=True, max_side=150).shape == (100, 150, 3)
