"""Which tags an image has, read from the files in which people keep them.

A CSV, JSON or JSON-lines file is first brought into records, a dictionary for each image, and these into
rows; only COCO's JSON has a way of its own. Nothing here looks at images.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from wsss_afa.data.folder import records as forms
from wsss_afa.data.folder.records import Record, kind_of
from wsss_afa.errors import UserError

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
"""How people name splits, and how this library does; ``test`` takes part in nothing."""
_FILE = (
    "file", "filename", "file_name", "image", "image_name", "image_id", "img", "path", "filepath",
    "file_path", "image_path", "name", "id",
)  # fmt: skip
_TAGS = ("tags", "labels", "classes", "categories")
_TAG = ("tag", "label", "class", "category")
_SPLIT = ("split", "subset", "set")
_MARKS = ";|,"
_ON_OFF = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Row(NamedTuple):
    """The tags of one image."""

    file: str  # as written, with forward slashes
    tags: tuple[str, ...]  # distinct, in order; none is background only
    split: str  # train, val, test, or empty where the file does not say
    where: str  # file and line, for messages


class Table(NamedTuple):
    """What a tag file says."""

    rows: list[Row]  # one for each image
    how: str  # how it was read, for people
    class_names: tuple[str, ...] = ()  # in the file's own order; empty where it has none


def read_tags(path: Path, separator: str | None = None) -> Table:
    """Read a tag file, whichever of the usual forms it has.

    - CSV with a header, separated by comma, semicolon or tab; UTF-8, or UTF-16 with a byte order mark.
    - JSON: a list of objects, a mapping from file to tags, or COCO's three lists.
    - JSON lines: an object a line.

    Tags stand in a column ``tags``, ``labels``, … as a list or as text with one of ``; | ,`` between them;
    without any, blanks separate, unless the column is named in the singular. Where no column has such a name,
    every other column is a class and holds 0 or 1. A column ``split`` is optional. An empty cell, an empty
    list and the name ``background`` mean that the image shows no class.

    Args:
        path: ``.csv``, ``.tsv``, ``.json`` or ``.jsonl``.
        separator: Between tags; None finds out.

    Raises:
        UserError: The file cannot be read, or not without guessing.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(path, forms.csv_records(path), separator)
    if suffix == ".jsonl":
        return _table(path, forms.jsonl_records(path), separator)
    if suffix != ".json":
        raise UserError(f"{path} is no tag file, need .csv, .tsv, .json or .jsonl: convert it")
    content = forms.parse_json(path, forms.read_text(path))
    if isinstance(content, dict) and len(content.keys() & {"images", "annotations", "categories"}) > 1:
        return _coco(path, content)
    return _table(path, forms.json_records(path, content), separator)


def _table(path: Path, records: list[Record], separator: str | None) -> Table:
    if not records:
        raise UserError(f"{path} has no row, need one for each image: add them")
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    file = _column(columns, _FILE)
    if file is None:
        raise UserError(f"{path} has the columns {columns}, need one with the image's name: call it `file`")
    split, tags = _column(columns, _SPLIT), _column(columns, _TAGS + _TAG)
    if tags is None:
        classes = tuple(column for column in columns if column not in (file, split))
        if not classes:
            raise UserError(f"{path} has the columns {columns} and no tags: add a column `tags`")
        how, names = "a 0-or-1 column per class", [_hot_tags(path, record, classes) for record in records]
    else:
        classes, mark = (), _mark(path, records, tags, separator)
        names = [_tags(path, record, tags, mark) for record in records]
        cells = [cell for _, cell in _cells(records, tags)]
        several = mark and any(mark in cell.strip() for cell in cells)
        how = "one tag per image" if cells else "tags as lists"
        how = f"tags separated by {'blanks' if mark == ' ' else repr(mark)}" if several else how
    rows = [
        Row(_file(path, record, file), own, _split(path, record, split), f"{path} {record[0]}")
        for record, own in zip(records, names, strict=True)
    ]
    return Table(rows, f"{path.name}, {how}", _clean(classes))


def _column(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    spelt = {column.strip().lower(): column for column in reversed(list(columns))}
    return next((spelt[name] for name in names if name in spelt), None)


def _file(path: Path, record: Record, column: str) -> str:
    where, values = record
    file = values.get(column)
    if isinstance(file, int) and not isinstance(file, bool):
        file = str(file)
    if not isinstance(file, str) or not file.strip():
        raise UserError(f"{path} {where} has no image in {column!r}: write its file name there")
    return file.strip().replace("\\", "/")


def _split(path: Path, record: Record, column: str | None) -> str:
    if column is None:
        return ""
    where, values = record
    split = SPLITS.get(str(values.get(column, "")).strip().lower())
    if split is None:
        raise UserError(f"{path} {where} has {column} {values.get(column)!r}, need train or val: change it")
    return split


def _hot_tags(path: Path, record: Record, classes: tuple[str, ...]) -> tuple[str, ...]:
    where, values = record
    for name in classes:
        if str(values.get(name)).strip().lower() not in _ON_OFF:
            problem = f"{path} {where} has {values.get(name)!r} in column {name!r}, need 0 or 1"
            raise UserError(f"{problem}: change it, or name the column of tags `tags`")
    return _clean(name for name in classes if _ON_OFF[str(values[name]).strip().lower()])


def _cells(records: list[Record], column: str) -> list[tuple[str, str]]:
    cells = [(where, values.get(column)) for where, values in records]
    return [(w, cell) for w, cell in cells if isinstance(cell, str) and not cell.lstrip().startswith("[")]


def _mark(path: Path, records: list[Record], column: str, separator: str | None) -> str:
    cells = _cells(records, column)
    found = {mark: where for mark in _MARKS for where, cell in reversed(cells) if mark in cell}
    if len(found) > 1 and not separator:
        (one, here), (other, there) = list(found.items())[:2]
        problem = f"{path} has {one!r} between tags on {here} and {other!r} on {there}"
        raise UserError(f'{problem}, need one separator: change the others, or set data.separator="{one}"')
    return separator or next(iter(found), "" if column.strip().lower() in _TAG else " ")


def _tags(path: Path, record: Record, column: str, mark: str) -> tuple[str, ...]:
    where, values = record
    value = values.get(column)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())  # JSON's lists of names are also Python's
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            problem = f"{path} {where} has the broken list {value!r}"
            raise UserError(f'{problem}, need ["cat", "dog"]: mend it') from error
    if isinstance(value, str):
        value = value.split(mark.strip() or None) if mark else [value]
    if not isinstance(value, list) or not all(type(name) in (str, int) for name in value):
        raise UserError(f"{path} {where} has no list of names in {column!r} ({kind_of(value)}): write one")
    return _clean(map(str, value))


def _clean(names: Iterable[str]) -> tuple[str, ...]:
    stripped = dict.fromkeys(name.strip() for name in names)
    return tuple(name for name in stripped if name and name.lower() != "background")


def _coco(path: Path, content: dict[str, Any]) -> Table:
    absent = [k for k in ("images", "annotations", "categories") if not isinstance(content.get(k), list)]
    if absent:
        raise UserError(f"{path} has no list {absent[0]!r}, need COCO's three lists: export it anew")
    names = {_get(path, item, "categories", "id"): str(_get(path, item, "categories", "name"))
             for item in content["categories"]}  # fmt: skip
    if len(set(names.values())) < len(content["categories"]):
        raise UserError(f"{path} has two categories of one id or name: rename or delete one")
    tags: dict[Any, set[Any]] = {_get(path, item, "images", "id"): set() for item in content["images"]}
    for item in content["annotations"]:
        image, category = (_get(path, item, "annotations", key) for key in ("image_id", "category_id"))
        if image not in tags or category not in names:
            key, value = ("image_id", image) if image not in tags else ("category_id", category)
            raise UserError(f"{path} has an annotation of {key} {value}, which is not listed: export it anew")
        tags[image].add(category)
    rows = []
    for item in content["images"]:
        file = str(_get(path, item, "images", "file_name")).replace("\\", "/")
        own = _clean(names[category] for category in sorted(tags[item["id"]]))
        rows.append(Row(file, own, "", f"{path} image {item['id']}"))
    return Table(rows, f"{path.name}, COCO's form", _clean(names[category] for category in sorted(names)))


def _get(path: Path, item: Any, group: str, key: str) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get(key), str | int):
        raise UserError(f"{path} has an entry of {group!r} without {key!r}: export it anew")
    return item[key]
