"""Which names mean train, val or test, and what the folders that photos lie in say about it.

What looks like a split is one, or it is refused: photos that somebody set apart for a test never train.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from wsss_afa.data.names import tidy
from wsss_afa.errors import UserError

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "vali", "va"), "val"),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evaluation", "evaluate"), "val"),
    **dict.fromkeys(("test", "testing", "tests", "tst", "te", "holdout", "heldout", "unseen"), "test"),
    **dict.fromkeys(
        ("\u8bad\u7ec3", "\u8bad\u7ec3\u96c6", "\u8a13\u7df4", "entrainement", "entrena", "entrenamiento"),
        "train",
    ),
    **dict.fromkeys(
        ("\u9a8c\u8bc1", "\u9a8c\u8bc1\u96c6", "validierung", "validaci\u00f3n", "validacion"), "val"
    ),
    **dict.fromkeys(("\u6d4b\u8bd5", "\u6d4b\u8bd5\u96c6", "prueba", "pruebas"), "test"),
    **dict.fromkeys(("pred", "predict", "prediction", "inference", "submission"), "test"),
}
_FILLERS = frozenset((
    "set", "sets", "data", "dataset", "datasets", "split", "splits", "subset", "folder", "dir", "files",
    "samples", "image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures",
    "jpg", "jpeg", "jpegs", "png", "jpegimages", "seg", "segmentation", "cls", "classification", "public",
    "private", "resized", "cropped", "aug", "augmented",
))  # fmt: skip
_NAMES = "train, val or test"


def split_of(name: str) -> str:
    """Train, val or test if a name means it, as ``Training``, ``test_set`` and ``seg_val`` do; else empty."""
    found, others = _read(name)
    if found == {"train", "val"}:  # VOC's trainval
        return "train"
    return next(iter(found)) if len(found) == 1 and not others else ""


def is_filler(name: str) -> bool:
    """Whether a folder's name says no more than that images are inside."""
    found, others = _read(name)
    return not found and not others and any(map(str.isalpha, name))


def _read(name: str) -> tuple[set[str], tuple[str, ...]]:
    """Splits that words of a name mean, and the words that are neither these nor fillers."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", tidy(name)))
    words = re.findall(r"[^\W\d_]+", re.sub(r"(hold|held)[\W_]?out", r"\1out", spaced.lower()))
    words = [_without_filler(word) for word in words]
    return {_WORDS[word] for word in words if word in _WORDS}, tuple(
        word for word in words if word not in _WORDS and word not in _FILLERS
    )


def _without_filler(word: str) -> str:
    ends = (word.removesuffix(filler) for filler in _FILLERS if word.endswith(filler))
    return next((end for end in ends if end in _WORDS), word)


class FolderSplits(NamedTuple):
    """What the folders of some photos say."""

    splits: list[str]  # of each photo; empty strings where the folders say nothing
    levels: tuple[int, ...]  # depths at which folders are splits; that of the first folder is 0
    how: str  # which folders were taken for which splits, for people


def folder_splits(root: Path, files: Sequence[str], classes: bool = False) -> FolderSplits:
    """Read the splits of photos off their folders: at some depth all photos lie in folders of splits.

    Args:
        root: For messages.
        files: Relative to it.
        classes: Whether the other folders are classes: one of them may then be called ``train``.

    Raises:
        UserError: Some photos lie in a folder of a split and others do not, or in folders of two splits.
    """
    parts = [PurePosixPath(file).parts[:-1] for file in files]
    depth = max(map(len, parts), default=0)
    meant = [[split_of(part[level]) if len(part) > level else "" for part in parts] for level in range(depth)]
    levels = tuple(level for level, own in enumerate(meant) if all(own))
    for level, own in enumerate(meant):
        if level not in levels:
            _refuse_some(root, files, parts, own, level, classes)
    splits = meant[levels[0]] if levels else [""] * len(files)
    for level in levels[1:]:
        for file, one, other in zip(files, splits, meant[level], strict=True):
            if one != other:
                raise UserError(f"{root / file} lies in folders of {one} and of {other}: move it")
    names = {part[levels[0]]: split for part, split in zip(parts, splits, strict=True)} if levels else {}
    renamed = [f"{name} is {split}" for name, split in sorted(names.items()) if name != split]
    return FolderSplits(splits, levels, ", ".join(["by folder", *renamed]))


def _refuse_some(
    root: Path, files: Sequence[str], parts: Sequence[tuple[str, ...]], own: Sequence[str], level: int,
    classes: bool,
) -> None:  # fmt: skip
    """Refuse a depth at which some folders are splits, or look like splits, and others are none."""
    found = {split for split in own if split}
    inside = [file for file, split in zip(files, own, strict=True) if split]
    deeper = any(len(part) > level + 1 for part, split in zip(parts, own, strict=True) if split)
    called = {part[level].lower() for part, split in zip(parts, own, strict=True) if split}
    if found - {"train"} or (found and classes and (deeper or called != {"train"})):
        outside = next(file for file, split in zip(files, own, strict=True) if not split)
        problem = f"{root} has {inside[0]} in a folder of a split and {outside} in none"
        raise UserError(f"{problem}, need all in folders {_NAMES}: move or rename, or add a column `split`")
    twins: dict[tuple[str, ...], str] = {}
    for name in sorted({part[level] for part in parts if len(part) > level}):
        splits, rest = _read(name)
        other = twins.setdefault(rest, name) if splits and rest else name
        if _read(other)[0] != splits:
            problem = f"{root} has the folders {other} and {name}, which look like splits"
            raise UserError(f"{problem}: call them {_NAMES}")
    if classes:
        _refuse_same_folders(root, parts, level)


def _refuse_same_folders(root: Path, parts: Sequence[tuple[str, ...]], level: int) -> None:
    """Refuse a folder with the word for a split in its name and the sub-folders that others have."""
    above = defaultdict[str, set[str]](set)  # folders by the name of a sub-folder
    for part in parts:
        if len(part) > level + 1:
            above[part[level + 1]].add(part[level])
    for below, names in above.items():
        if len(names) > 1 and (hints := [name for name in sorted(names) if _read(name)[0]]):
            problem = (
                f"{root} has {hints[0]}/{below} and {min(names - {hints[0]})}/{below}, which look like splits"
            )
            raise UserError(f"{problem}: call the folders {_NAMES}, or add labels.csv")
