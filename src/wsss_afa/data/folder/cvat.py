"""CVAT's XML as tags: those of an image, and the labels of its shapes, in "CVAT for images"."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wsss_afa.data.folder.records import Export, Record, read_text
from wsss_afa.data.folder.splits import split_of
from wsss_afa.errors import UserError

_NEED = 'export "CVAT for images 1.1"'


def is_cvat(path: Path) -> bool:
    """Whether a file is XML that begins as CVAT's does; VOC's begins with ``<annotation>``."""
    if path.suffix.lower() != ".xml":
        return False
    try:
        with path.open("rb") as file:
            return b"<annotations>" in file.read(2000).replace(b"\0", b"")  # or UTF-16
    except OSError:
        return False


def read_cvat(path: Path) -> Export:
    """Every image of a task or project, with its labels; a project's subsets are splits if all are named so.

    Raises:
        UserError: It is no XML, declares entities, or holds no image, as the export of a video.
    """
    text = read_text(path)
    try:
        if "<!DOCTYPE" in text:
            raise ValueError("a document type")
        root = ElementTree.fromstring(text)  # noqa: S314 - without a DOCTYPE there are no entities
    except (ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no XML of CVAT ({error}): {_NEED}") from error
    images = root.findall("image")
    if not images:
        raise UserError(f"{path} has no image: {_NEED}")
    names = [label.findtext("name", "") for label in root.iterfind("meta//labels/label")]
    splits = [split_of(image.get("subset", "")) for image in images]
    records = [_record(path, image) for image in images]
    if {"val", "test"} & {*splits} and not all(splits):
        other = images[splits.index("")].get("subset", "")
        raise UserError(
            f"{path} has the subset {other!r}, need Train, Validation or Test beside others: rename it"
        )
    if all(splits):
        records = [
            (where, {**own, "split": part}) for (where, own), part in zip(records, splits, strict=True)
        ]
    return Export("CVAT's", records, tuple(dict.fromkeys(names)))


def _record(path: Path, image: ElementTree.Element) -> Record:
    where, file = f"image {image.get('id')}", image.get("name")
    if not file:
        raise UserError(f"{path} {where} has no name: {_NEED}")
    labels = [name for shape in image if (name := shape.get("label")) is not None]
    values: dict[str, Any] = {"file": file, "tags": list(dict.fromkeys(labels))}
    return where, values
