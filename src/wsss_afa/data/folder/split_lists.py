"""Splits by lists: text files such as ``train.txt`` or ``ImageSets/Main/val.txt``, a photo on each line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsss_afa.data.folder.photos import find_photo, group_by_name
from wsss_afa.data.folder.records import read_text
from wsss_afa.data.folder.splits import split_of
from wsss_afa.data.folder.tags import Row
from wsss_afa.errors import UserError


def listed_splits(root: Path, files: Sequence[str]) -> tuple[list[str], str] | None:
    """The split of each photo, and what it was read from; None where no file lists photos.

    A line is a photo's name or path, with or without its ending, and may go on after a blank, as VOC's do.

    Raises:
        UserError: A photo is in no list or in two of different splits, or a line names none.
    """
    by_name, found = group_by_name(list(files)), dict[str, tuple[str, Path]]()
    lists = {path: rows for path in _candidates(root) if (rows := _rows(path, by_name))}
    if {"train", "val"} <= {split_of(path.stem) for path in lists if "trainval" not in path.stem.lower()}:
        lists = {path: rows for path, rows in lists.items() if "trainval" not in path.stem.lower()}
    for path, rows in lists.items():
        for row in rows:
            file, split = find_photo(root, by_name, row, hint=False), split_of(path.stem)
            other = found.setdefault(file, (split, path))
            if other[0] != split:
                problem = f"{row.where} and {other[1]} list {file}, need one split of a photo"
                raise UserError(f"{problem}: delete one line, or add a column `split`")
    names = " and ".join(path.relative_to(root).as_posix() for path in lists)
    if lists and (absent := [file for file in files if file not in found]):
        problem = f"{root} has {len(absent)} photos, {absent[0]} first, that {names} do not list"
        raise UserError(f"{problem}: list them, move them away, or add a column `split`")
    return ([found[file][0] for file in files], f"by {names}") if lists else None


def _candidates(root: Path) -> list[Path]:
    paths = [path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}*.txt")]
    return sorted(path for path in paths if split_of(path.stem) and path.is_file())


def _rows(path: Path, by_name: dict[str, list[str]]) -> list[Row]:
    """The lines of a file; none if not even one is a photo, as in a text about the training."""
    lines = [(n, line.split()) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    rows = [Row(words[0].replace("\\", "/"), (), "", f"{path} line {n}") for n, words in lines]
    return rows if any(group_by_name([row.file]).keys() & by_name.keys() for row in rows) else []
