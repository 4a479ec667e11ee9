"""Masks among photos: folders, or files beside photos, that would be taken for images of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from wsss_afa.data.images import open_image
from wsss_afa.errors import UserError

_WORD = re.compile(
    r"masks?|labels?|labelled|annot(?:ation)?s?|anns?|gts?|groundtruths?|truths?|seg(?:mentation|map)?s?|mattes?|trimaps?"
    r"|silhouettes?|targets?"
)  # fmt: skip
_SUFFIX = re.compile(
    r"^masks?[\W_]+|[\s_.+-]+(?:masks?|labels?|gt|ground[\W_]?truth|seg(?:mentation)?|annotation|matte|trimap)[\W_\d]*$"
)
_USUAL = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")  # of masks that lie in a folder of any name
_LOOKS = 5  # files of a folder that are opened


def refuse_masks(root: Path, photos: Sequence[str]) -> None:
    """Raise a UserError if some photos are masks of others, by their names and what is in them.

    They lie in a folder with the names of the photos in another and hold labels: a few colours or shades. The
    folder is called so (``mask``, ``labels``, ``gt``, …), or the photos in the other are no such images. Or
    they lie beside their photos and end in ``_mask`` or the like.
    """
    folders = defaultdict[str, dict[str, str]](dict)  # of each folder the files by their names without ending
    for file in photos:
        path = PurePosixPath(file)
        folders[str(path.parent)][path.stem] = file
    for files in folders.values():
        own = {_SUFFIX.sub("", stem): file for stem, file in files.items() if _SUFFIX.search(stem)}
        if own and own.keys() <= files.keys() and _hold_labels(root, own.values()):
            first, file = next(iter(own.items()))
            _refuse(root, f"{file} beside {files[first]}")
    called = {folder for folder in folders if _is_called(folder)}
    look = cache(lambda folder: _hold_labels(root, folders[folder].values(), folder in called))
    for folder, files in folders.items() if len(folders) > 1 else ():
        usual = all(file.lower().endswith(_USUAL) for file in files.values())
        if (folder in called or usual) and look(folder):
            stems = {_SUFFIX.sub("", stem) for stem in files}
            for other in folders.keys() - called - {folder}:
                if stems <= folders[other].keys() and (folder in called or not look(other)):
                    _refuse(root, f"the folder {folder} with the names of the photos in {other}")
            others = {stem for other in folders.keys() - called - {folder} for stem in folders[other]}
            if stems <= others and (folder in called or all(map(_SUFFIX.search, files))):
                _refuse(root, f"the folder {folder} with the names of photos in other folders")


def _refuse(root: Path, what: str) -> None:
    problem = f"{root} has {what}, which looks like masks"
    remedy = f"move them to {root / 'masks'}; tags come from labels.csv or a sub-folder for each class"
    raise UserError(f"{problem}, need masks apart from photos: {remedy}")


def _is_called(folder: str) -> bool:
    """Whether a word of the last two folders on a path means masks."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", " ".join(PurePosixPath(folder).parts[-2:]))
    words = re.findall(r"[^\W\d_]+", re.sub(r"ground[\W_]?truth", "groundtruth", spaced.lower()))
    return any(_WORD.fullmatch(word) for word in words)


def _hold_labels(root: Path, files: Iterable[str], called: bool = True) -> bool:
    """Whether a few of the files are all images of labels: one channel, or few colours."""
    each = sorted(files)
    chosen = {each[i * (len(each) - 1) // (_LOOKS - 1)] for i in range(_LOOKS)}
    return all(_holds_labels(root / file, called) for file in chosen)


def _holds_labels(path: Path, called: bool) -> bool:
    try:
        with open_image(path) as image:
            blurred = image.format == "JPEG"
            if image.mode in ("1", "L", "P", "LA", "I;16") and (called or not blurred):
                return True
            few = min(64, image.width * image.height // 4)
            pixels = np.asarray(image.convert("RGB").resize((64, 64), 0)).reshape(-1, 3)
            if blurred:  # at edges: a few colours, or of grey a few shades, have most pixels
                grey = bool((np.ptp(pixels, 1) < 4).all())
                counts = np.unique(pixels >> (6 if called else 3), axis=0, return_counts=True)[1]
                return (called or grey) and bool(np.sort(counts)[-4:].sum() > 0.9 * len(pixels))
    except Exception:  # it is told apart from others, and refused elsewhere
        return False
    return bool((pixels == pixels[:, :1]).all()) or len(np.unique(pixels, axis=0)) <= few
