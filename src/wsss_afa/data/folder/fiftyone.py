"""FiftyOne's exports as tags: ``labels.json`` of images with classes, ``samples.json`` of a whole dataset.

In the first, ``labels`` holds a classification, a list of them, or null by the image's name without its
ending. One is a name, an object with a ``label``, or, where ``classes`` lists names, its place among them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wsss_afa.data.folder.records import Export, Record
from wsss_afa.data.folder.splits import split_of
from wsss_afa.errors import UserError


def is_fiftyone(content: Any) -> bool:
    """Whether JSON has the two entries of such a file."""
    return isinstance(content, dict) and content.keys() == {"classes", "labels"}


def is_samples(content: Any) -> bool:
    """Whether JSON is a dataset's list of samples."""
    return isinstance(content, dict) and content.keys() == {"samples"}


def read_samples(path: Path, content: dict[str, Any]) -> Export:
    """The labels of every sample, of classifications and detections, in the one field that has them.

    A UserError says that several fields have labels, or that a sample is not as FiftyOne writes it.
    """
    samples, records = content["samples"], list[Record]()
    if not isinstance(samples, list) or not all(isinstance(each, dict) for each in samples):
        raise UserError(f"{path} has no list of samples: export the dataset anew")
    fields = sorted({name for each in samples for name, value in each.items() if _parts(value) is not None})
    if len(fields) > 1:
        problem = f"{path} has labels in the fields {fields[0]} and {fields[1]}, need one field"
        raise UserError(f"{problem}: export the dataset with the one that has the tags")
    for place, each in enumerate(samples):
        where = f"sample {place + 1}"
        parts = (_parts(each.get(fields[0])) if fields else None) or []
        names = [_name(path, where, part, []) for part in parts]
        splits = [split for tag in each.get("tags") or () if (split := split_of(str(tag)))]
        record: dict[str, Any] = {"file": each.get("filepath"), "tags": names}
        records.append((where, record | ({"split": splits[0]} if len(splits) == 1 else {})))
    return Export("FiftyOne's", records)


def _parts(value: Any) -> list[Any] | None:
    """The labels in a field of a sample; None if it has no such field's form."""
    kind = value.get("_cls") if isinstance(value, dict) else None
    if kind == "Classification":
        return [value]
    key = {"Classifications": "classifications", "Detections": "detections"}.get(str(kind))
    return list(value.get(key) or ()) if key else None


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
