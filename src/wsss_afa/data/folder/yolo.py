"""YOLO's label files as tags: a text file for each photo, whose lines begin with the number of a class.

The file of ``images/train/a.jpg`` is ``labels/train/a.txt``, that of a photo in another folder lies beside
it. Names of the classes stand in ``data.yaml``, ``obj.names`` or ``classes.txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from omegaconf import OmegaConf

from wsss_afa.data.folder.records import find_classes, read_classes, read_text
from wsss_afa.data.folder.tags import Row, Table, clean
from wsss_afa.errors import UserError


def read_yolo(root: Path, photos: Sequence[str]) -> Table | None:
    """The classes of every photo, or None where there are no label files or no names of classes.

    Raises:
        UserError: A line does not begin with the number of a class, or the names cannot be read.
    """
    if not (named := _name_files(root)):  # as mostly, and then no photo's label file is looked for
        return None
    files = {photo: path for photo in photos if (path := root / _label_file(photo)).is_file()}
    names = _class_names(named) if files else []
    if not names:
        return None
    rows = [Row(photo, clean(_tags(files.get(photo), names)), "", photo) for photo in photos]
    absent = [photo for photo in photos if photo not in files]
    doubt = f"{root} has {len(absent)} photos without a label file, {absent[:1]} first, read as no class"
    return Table(
        rows,
        "YOLO's label files",
        clean(names),
        (f"{doubt}: leave out what nobody looked at",) * bool(absent),
    )


def _label_file(photo: str) -> str:
    parts = list(PurePosixPath(photo).with_suffix(".txt").parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    for place in places[-1:]:
        parts[place] = "labels"
    return "/".join(parts)


def _name_files(root: Path) -> list[Path]:
    """Files that may hold the names of classes, the one that counts first."""
    lists = [root / "obj.names", find_classes(root)]
    found = [path for path in lists if path is not None and path.is_file()]
    return sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) + found


def _class_names(files: Sequence[Path]) -> list[str]:
    for path in files:
        if path.suffix not in (".yaml", ".yml"):
            return read_classes(path)
        try:
            content = OmegaConf.to_container(OmegaConf.create(read_text(path)))
        except Exception as error:  # of the parsers of two packages
            raise UserError(f"{path} is no YAML ({str(error).splitlines()[0]}): mend or remove it") from error
        found = content.get("names") if isinstance(content, dict) else None
        if isinstance(found, dict):
            found = [found[key] for key in sorted(found, key=int)]
        if isinstance(found, list):
            return list(map(str, found))
    return []


def _tags(path: Path | None, names: Sequence[str]) -> list[str]:
    found = list[str]()
    for n, line in enumerate(read_text(path).splitlines() if path else [], 1):
        number = line.split()[:1]
        if number and not (
            number[0].isdecimal() and int(number[0]) < len(names) and names[int(number[0])].strip()
        ):
            problem = (
                f"{path} line {n} begins with {number[0]!r}, need the number of one of {len(names)} classes"
            )
            raise UserError(f"{problem}: mend it, or the names in data.yaml")
        found += [names[int(each)] for each in number]
    return found
