"""Tags in forms and places that are not read, so that a message can say what to do with them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from wsss_afa.data.folder.records import TAG_SUFFIXES
from wsss_afa.data.own_output import is_own_output

_MAX_FILES = 10_000  # looked at, by name
_YOLO = re.compile(r"\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*$", re.IGNORECASE | re.MULTILINE)
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers", ".parquet")


def other_tags(root: Path) -> str:
    """What to do with tags that lie below a folder and cannot be read as they are; empty if none are seen."""
    files = sorted(islice(_files(root), _MAX_FILES))
    for path in files:
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() == ".txt" and _YOLO.match(_start(path)):
            return f"{name} is a label of YOLO, whose classes have no names; add data.yaml or classes.txt"
        if path.suffix.lower() == ".xml" and "<annotation" in _start(path):
            return f"{name} is XML of VOC, read by data=voc alone; export COCO's JSON, or write labels.csv"
        if path.suffix.lower() in _SHEETS:
            return f"{name} is no text; save it as CSV in UTF-8"
    tables = [path.relative_to(root).as_posix() for path in files if path.suffix.lower() in TAG_SUFFIXES]
    return f"set data.labels={tables[0]} if tags stand there" if tables else ""


def _files(root: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(root):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and not is_own_output(here / name)]
        yield from (here / name for name in files if not name.startswith("."))


def _start(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1000).replace(b"\0", b"").decode("utf-8", "replace").strip()
    except OSError:
        return ""
