"""FiftyOne's ``labels.json`` of an image classification dataset as tags.

``labels`` holds a classification, a list of them, or null by the image's name without its ending. One is a
name, an object with a ``label``, or, where ``classes`` lists names, its place among them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss_afa.data.folder.records import Export, Record
from wsss_afa.errors import UserError


def is_fiftyone(content: Any) -> bool:
    """Whether JSON has the two entries of such a file."""
    return isinstance(content, dict) and content.keys() == {"classes", "labels"}


def read_fiftyone(path: Path, content: dict[str, Any]) -> Export:
    """The classifications of every image; a UserError says that one is of no known class."""
    classes, labels = content["classes"] or [], content["labels"]
    if not isinstance(classes, list) or not isinstance(labels, dict):
        raise UserError(f"{path} has no list `classes` and object `labels`: export the dataset anew")
    records: list[Record] = []
    for file, found in labels.items():
        given = found if isinstance(found, list) else [] if found is None else [found]
        names = [_name(path, file, each, classes) for each in given]
        records.append((f"entry {file!r}", {"file": file, "tags": names}))
    empty = sum(found is None for found in labels.values())
    doubts = [f"{path} has null for {empty} images, read as no tag: leave out those that nobody looked at"]
    return Export("FiftyOne's", records, tuple(map(str, classes)), tuple(doubts * bool(empty)))


def _name(path: Path, file: str, given: Any, classes: list[Any]) -> str:
    value = given.get("label") if isinstance(given, dict) else given
    if type(value) is int and 0 <= value < len(classes):
        return str(classes[value])
    if isinstance(value, str):
        return value
    raise UserError(
        f"{path} entry {file!r} has the label {value!r}, need a name or one of {len(classes)}: mend it"
    )
