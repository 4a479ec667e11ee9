"""Image and mask files: decoding them, and finding out early which are missing."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from wsss_afa.errors import UserError
from wsss_afa.types import IGNORE_INDEX

_TURNS = {  # what brings an image of each EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the values of grey PNGs of 2 and 4 bits by
_LEAST_BRIGHT = 1 << 14  # of 16 bits: below, an image has at most 14 bits, or next to no light
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "MPO")


def read_image(
    path: Path | IO[bytes], upright: bool = False, max_pixels: int | None = None, max_side: int | None = None
) -> NDArray[np.uint8]:
    """Decode any image to RGB (H, W, 3).

    Grey-scale, palette and CMYK images are converted, transparency is dropped, and of 16 bits the upper 8 are
    kept. Of several frames the first is read. Colour profiles are not applied. A UserError says that the file
    is missing, truncated, no image or too large, or that its pixels have no range that all images share:
    fractions, 32 bits, or 16 bits of which the upper two are never used.

    Args:
        path: Of the image; or an open file, which says in errors where it lies.
        upright: Whether to turn the image as its EXIF orientation says. The masks of VOC and the polygons of
            COCO refer to the pixels as they are stored.
        max_pixels: Larger images are refused before they are decoded; None leaves it to Pillow's own limit.
        max_side: Images with a longer side are reduced to it; of JPEG, no more is decoded than that asks for.
    """
    with _decoding(path), open_image(path) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            problem = f"has {image.width}×{image.height} pixels, more than max_pixels={max_pixels}"
            raise UserError(f"{path} {problem}: make it smaller or raise max_pixels")
        if max_side is None:
            return _rgb(image, upright, path)
        size = _reduced(image.size, max_side)
        image.draft(image.mode, size)  # the next power of 2 that is not smaller
        pixels = _rgb(image, upright, path)
        turned = pixels.shape[1::-1] != image.size
        return _resize(pixels, size[::-1] if turned else size, cv2.INTER_AREA)


def shrink(image: NDArray[np.uint8], max_side: int | None, nearest: bool = False) -> NDArray[np.uint8]:
    """Reduce an image or mask so that its longer side is ``max_side`` at most.

    The image is (H, W, 3) or (H, W); None changes nothing. Labels need ``nearest``, which picks pixels where
    others are averaged.
    """
    if max_side is None or max(image.shape[:2]) <= max_side:
        return image
    size = _reduced((image.shape[1], image.shape[0]), max_side)
    return _resize(image, size, cv2.INTER_NEAREST_EXACT if nearest else cv2.INTER_AREA)


def _resize(image: NDArray[np.uint8], size: tuple[int, int], how: int) -> NDArray[np.uint8]:
    same = image.shape[1::-1] == size
    return image if same else np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)


def _reduced(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    ratio = min(1.0, max_side / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def to_rgb(image: Image.Image, upright: bool = False) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image, made as `read_image` makes them; a UserError says that it is broken."""
    with _decoding("the image"):
        return _rgb(image, upright, "the image")


def read_mask(
    path: Path | IO[bytes], size: tuple[int, ...], num_classes: int = IGNORE_INDEX - 1, reduced: bool = False
) -> NDArray[np.uint8]:
    """Decode a palette or grey-scale PNG (H, W), of 1 to 16 bits, whose values are labels: 0 to C, or 255.

    ``size`` is (H, W) of the image that it belongs to, ``num_classes`` is C. Where that image may have been
    ``reduced``, a mask of the image's own size is reduced like it. A UserError says that the file is missing,
    truncated or no image, has colours instead of labels, another size or a label above C.
    """
    with _decoding(path), open_image(path) as image:
        if image.mode not in ("P", "L", "1", "I;16"):
            raise UserError(f"{path} has mode {image.mode}, need labels: save it as a palette PNG")
        found = _reduced(image.size, max(size)) if reduced else image.size
        if found[::-1] != tuple(size):  # before it is decoded
            problem = f"{path} is {(image.height, image.width)} pixels, its image {tuple(size)}"
            raise UserError(f"{problem}: replace one of them")
        stored = [tile.args for tile in getattr(image, "tile", ())]  # before they are decoded
        mask = np.array(image) // _STRETCHED.get(str(*stored[:1]), 1)
    worst = mask.max(initial=0, where=mask != IGNORE_INDEX)
    if worst > num_classes:
        raise UserError(f"{path} has label {worst}, need 0 to {num_classes} or {IGNORE_INDEX}: replace it")
    return shrink(mask.astype(np.uint8), max(size), nearest=True)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of an image (H, W, 3) or of labels (H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Open an image whose head alone is read so far, and which Pillow can decode by itself.

    Others it would hand to programs, such as EPS, which is a program, to Ghostscript.
    """
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def read_kind(file: Path | IO[bytes]) -> str:
    """Format and colours as stored, such as "JPEG RGB", from an image's head; empty if there is no image."""
    try:
        with open_image(file) as image:
            return f"{image.format} {image.mode}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def require_file(path: Path) -> None:
    """Raise a UserError unless a path is that of a file: reading anything else may fail late or never end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        problem = f"cannot be opened ({error.strerror}): mend the path or its permissions"
        if path.is_symlink():
            problem = "links to nothing: copy the image there or remove the link"
        elif isinstance(error, FileNotFoundError):
            problem = "does not exist: mend the path"
        raise UserError(f"{path} {problem}") from error
    if stat.S_ISDIR(mode):
        readable = os.access(path, os.R_OK | os.X_OK)
        remedy = "give one of its files" if readable else "change its permissions to list it"
        raise UserError(f"{path} is a folder, need an image: {remedy}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe, socket or device, need an image: copy it to a file")


def absent_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the file names that the folder, listed once, does not hold."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in names if name not in present]


def require_files(folder: Path, names: list[str], split: str) -> None:
    """Raise a UserError unless a folder holds the files of a split."""
    absent = absent_files(folder, names)
    if absent:
        count = f"{len(absent)} of the {len(names)} files of split {split!r}"
        others = [f"{folder / name} is missing: copy it" for name in absent[1:]]
        raise all_of([f"{folder} lacks {count}, {absent[0]} first: copy them", *others])


def all_of(lines: list[str]) -> UserError:
    """One error of the first line; the others are its notes, for programs that list every mistake."""
    error = UserError(lines[0])
    for line in lines[1:]:
        error.add_note(line)
    return error


def _rgb(image: Image.Image, upright: bool, name: object) -> NDArray[np.uint8]:
    halved = ";16" in str([tile[3] for tile in getattr(image, "tile", ())])  # Pillow drops the lower 8 bits
    image.load()
    if upright:
        with suppress(Exception):  # most have no such tag, and broken tags raise what they like
            image = image.transpose(_TURNS[image.getexif()[ExifTags.Base.Orientation]])
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        problem = f"{name} has 32-bit {'fractions' if image.mode == 'F' else 'numbers'} for pixels"
        raise UserError(f"{problem}, need 8 or 16 bits of one range: save it with 8 bits")
    if image.mode.startswith("I"):
        wide = np.array(image)
        _refuse_dark(int(wide.max()), name)
        return np.array(Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB"))
    pixels = np.array(image.convert("RGB"))
    if halved and (brightest := int(pixels.max())):
        _refuse_dark(brightest << 8 | 255, name)
    return pixels


def _refuse_dark(highest: int, name: object) -> None:
    """Refuse 16 bits whose upper ones are never used; an image that is all black may be so."""
    if 0 < highest < _LEAST_BRIGHT:
        problem = f"{name} has pixels of 16 bits, none above {highest}, as if of {highest.bit_length()} bits"
        raise UserError(f"{problem}, and would be almost black: save it with 8 bits")


@contextmanager
def _decoding(path: Path | IO[bytes] | str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{path} has more than {limit} pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        problem = "cannot be read as an image (of no known format)"
        raise UserError(f"{path} {problem}: copy it anew, or convert it to JPEG or PNG") from error
    except Exception as error:  # decoders raise what they like on broken files
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}): copy it anew") from error
