"""COCO's JSON as tags: those of an image are the categories of its annotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wsss_afa.data.folder.records import kind_of
from wsss_afa.data.folder.splits import split_of
from wsss_afa.data.names import tidy
from wsss_afa.errors import UserError

LISTS = ("images", "annotations", "categories")
_KEYS = {*LISTS, "info", "licenses"}


class Pictured(NamedTuple):
    """An image of the file and the names of its categories, in their order."""

    file: str
    names: list[str]
    identity: str
    split: str  # train, val, test, or empty where nothing says so


def is_coco(content: Any) -> bool:
    """Whether JSON is an object as COCO has it, be it incomplete."""
    if not isinstance(content, dict):
        return False
    values = [content[key] for key in sorted(_KEYS & content.keys())]
    return len(content.keys() & {*LISTS}) > 1 or any(map(_holds_objects, values))


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and (not value or isinstance(value[0], dict)))


def read_coco(path: Path, content: dict[str, Any]) -> tuple[list[Pictured], list[str]]:
    """The images with their categories, and all categories' names in order of their ids.

    Ids may be numbers, be they written with a point, or text: ``"3"``, ``3`` and ``3.0`` are the same.

    Raises:
        UserError: A list or a value is missing, or an id is unknown or comes twice.
    """
    absent = [key for key in LISTS if not isinstance(content.get(key), list)]
    if absent:
        need = f"need COCO's three lists, {', '.join(LISTS)}"
        raise UserError(f"{path} has no list {absent[0]!r}, {need}: export it anew")
    names = _by_id(path, content, "categories", "name")
    ids = sorted(names, key=lambda each: (not each.isdecimal(), len(each) * each.isdecimal(), each))
    if len({tidy(name) for name in names.values()}) < len(names):
        raise UserError(f"{path} has two categories of one id or name: rename or delete one")
    files = _by_id(path, content, "images", "file_name")
    tags: dict[str, set[str]] = {each: set() for each in files}
    for image, category in _annotations(path, content):
        known = tags.keys(), names.keys()
        for key, value, listed in zip(("image_id", "category_id"), (image, category), known, strict=True):
            if value not in listed:
                problem = f"{path} has an annotation of {key} {value}, which is not listed"
                raise UserError(f"{problem} (as {next(iter(listed), 'none')} is): export it anew")
        tags[image].add(category)
    splits = {
        _id(path, item, "images", "id"): split_of(str(item.get("split", ""))) for item in content["images"]
    }
    images = [
        Pictured(files[each], [names[i] for i in ids if i in own], each, splits[each])
        for each, own in tags.items()
    ]
    return images, [names[i] for i in ids]


def _annotations(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for item in content["annotations"]:
        yield _id(path, item, "annotations", "image_id"), _id(path, item, "annotations", "category_id")


def _by_id(path: Path, content: dict[str, Any], group: str, key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in content[group]:
        identity, value = _id(path, item, group, "id"), _value(path, item, group, key)
        if not isinstance(value, str) and not (key == "name" and type(value) is int):
            raise _wrong(path, group, key, value, "text")
        if isinstance(value, str) and not tidy(value):
            raise _wrong(path, group, key, value, "a name")
        if identity in found:
            raise UserError(f"{path} has two {group} of one id or name, such as {identity}: delete one")
        found[identity] = str(value)
    return found


def _id(path: Path, item: Any, group: str, key: str) -> str:
    value = _value(path, item, group, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) not in (int, str):
        raise _wrong(path, group, key, value, "a whole number or text")
    return str(value).strip()


def _value(path: Path, item: Any, group: str, key: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise UserError(f"{path} has an entry of {group!r} without {key!r}: export it anew")
    return item[key]


def _wrong(path: Path, group: str, key: str, value: Any, need: str) -> UserError:
    found = f"{path} has an entry of {group!r} with {key!r} {value!r} ({kind_of(value)})"
    return UserError(f"{found}, need {need}: export it anew")
