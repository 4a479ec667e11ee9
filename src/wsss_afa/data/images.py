"""Image and mask files: decoding them, and finding out early which are missing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsss_afa.types import UserError


def read_image(path: Path | BinaryIO, upright: bool = False) -> NDArray[np.uint8]:
    """Decode any image to RGB.

    Grey-scale, palette and CMYK images are converted, transparency is dropped, and of 16 bits the upper 8 are
    kept. Of several frames the first is read.

    Args:
        path: Of the image; or an open file, which says in errors where it lies.
        upright: Whether to turn the image as its EXIF orientation says. The masks of VOC and the polygons of
            COCO refer to the pixels as they are stored.

    Returns:
        (H, W, 3).

    Raises:
        UserError: The file is missing, truncated or no image.
    """
    image = _open(path)
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.array(image) >> 8).clip(0, 255).astype(np.uint8))
    return np.array(image.convert("RGB"))


def read_mask(path: Path | BinaryIO, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Decode a palette or grey-scale PNG whose pixel values are the labels.

    Args:
        path: Of the PNG, or an open file.
        size: (H, W) of the image that it belongs to.

    Returns:
        (H, W).

    Raises:
        UserError: The file is missing, truncated or no image, has colours instead of labels or another size.
    """
    image = _open(path)
    if image.mode not in ("P", "L"):
        raise UserError(f"{path} has mode {image.mode}, need one label per pixel: save it as a palette PNG")
    mask = np.array(image)
    if mask.shape != size:
        raise UserError(
            f"{path} is {mask.shape} pixels, its image {size}: need equal sizes, replace one of them"
        )
    return mask


def read_kind(file: Path | BinaryIO) -> str:
    """Format and colours as stored, such as "JPEG RGB", from an image's head; empty if there is no image."""
    try:
        with Image.open(file) as image:
            return f"{image.format} {image.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def absent_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the file names that the folder, listed once, does not hold."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in names if name not in present]


def require_files(folder: Path, names: list[str], split: str) -> None:
    """Check that a folder holds the files of a split.

    Raises:
        UserError: It does not.
    """
    absent = absent_files(folder, names)
    if absent:
        raise all_of([
            f"{folder} lacks {len(absent)} of the {len(names)} files of split {split!r}, {absent[0]} first: "
            "copy them or choose another split",
            *(f"{folder / name} is missing: copy it" for name in absent[1:]),
        ])  # fmt: skip


def all_of(lines: list[str]) -> UserError:
    """One error of the first line; the others are its notes, for programs that list every mistake."""
    error = UserError(lines[0])
    for line in lines[1:]:
        error.add_note(line)
    return error


def _open(path: Path | BinaryIO) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): copy it anew") from error
