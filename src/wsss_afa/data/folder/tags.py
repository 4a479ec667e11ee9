"""Which tags an image has, read from the files in which people keep them.

A CSV, JSON or JSON-lines file is first brought into records, a dictionary for each image, and these into
rows; only COCO's JSON has a way of its own. Nothing here looks at images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_afa.data.folder import records as forms
from wsss_afa.data.folder.coco_tags import is_coco, read_coco
from wsss_afa.data.folder.columns import CONFIDENCE, FILE, SPLIT, TAG, TAGS, find_column, plain
from wsss_afa.data.folder.cvat import read_cvat
from wsss_afa.data.folder.fiftyone import is_fiftyone, is_samples, read_fiftyone, read_samples
from wsss_afa.data.folder.label_studio import is_short_form, is_tasks, read_short_form, read_tasks
from wsss_afa.data.folder.lists import looks_like_list, looks_torn, parse_list
from wsss_afa.data.folder.records import Export, Record, kind_of
from wsss_afa.data.folder.separators import find_separator, is_missing
from wsss_afa.data.folder.splits import split_of
from wsss_afa.data.names import is_background, tidy
from wsss_afa.errors import UserError
from wsss_afa.types import MAX_CLASSES

_ON_OFF = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_FLAG = re.compile(
    r"is[_ ](.+)|(train(?:ing)?|val(?:idation)?|test(?:ing)?|holdout|dev)(?:[_ ]?set)?", re.IGNORECASE
)
_ANSWERS = {*_ON_OFF, "-1", "yes", "no", "y", "n", "on", "off", "positive", "negative", "present", "absent"}


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
    doubts: tuple[str, ...] = ()  # what was read in one way and may be meant in another, in a line each
    covers: bool = True  # whether every photo should have a row
    renames: bool = False  # whether files may have another name than the photos they were


def read_tags(path: Path, separator: str | None = None, listed: Collection[str] = ()) -> Table:
    """Read a tag file, whichever of the usual forms it has.

    - CSV with a header, separated by comma, semicolon or tab; UTF-8, or UTF-16 with a byte order mark.
    - JSON: a list of objects, a mapping from file to tags, or COCO's three lists.
    - JSON lines: an object a line.
    - What annotation tools export: Label Studio's JSON, JSON-MIN and CSV, CVAT's XML, FiftyOne's JSON.

    Tags stand in a column ``tags``, ``labels``, … as a list, which programs may have written as text, or as
    text with one of ``; | ,`` between them. In a column ``tag``, ``label``, … an image may have a row for
    each of its tags. Where no column has such a name, every other column is a class and holds 0 or 1. A
    column ``split``, or another whose every cell names a split, is optional. An empty cell or list,
    ``background``, and what stands for a missing value mean that the image shows no class.

    Args:
        path: ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.xml``.
        separator: Between tags; None finds out.
        listed: Names of the classes, if they are known; they settle what can be read in two ways.

    Raises:
        UserError: The file cannot be read, or not without guessing.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(path, forms.csv_records(path), separator, listed)
    if suffix == ".jsonl":
        return _table(path, forms.jsonl_records(path), separator, listed)
    if suffix == ".xml":
        return _exported(path, read_cvat(path), listed)
    if suffix != ".json":
        raise UserError(f"{path} is no tag file, need .csv, .tsv, .json, .jsonl or CVAT's .xml: convert it")
    content = forms.parse_json(path, forms.read_text(path))
    if is_coco(content):
        images, names = read_coco(path, content)
        rows = [
            Row(
                image.file.replace("\\", "/"),
                clean(image.names),
                image.split,
                f"{path} image {image.identity}",
            )
            for image in images
        ]
        return Table(rows, f"{path.name}, COCO's form", clean(names))
    forms_of_tools = ((is_tasks, read_tasks), (is_fiftyone, read_fiftyone), (is_samples, read_samples))
    for told, read in forms_of_tools:
        if told(content):
            return _exported(path, read(path, content), listed)
    return _table(path, forms.json_records(path, content), separator, listed)


def clean(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in their one form, without ``background``."""
    forms = dict.fromkeys(map(tidy, names))
    return tuple(name for name in forms if name and not is_background(name))


def _exported(path: Path, export: Export, listed: Collection[str]) -> Table:
    table = _table(path, export.records, None, listed)
    return Table(
        table.rows, f"{path.name}, {export.tool} form", clean(export.class_names),
        (*export.doubts, *table.doubts), renames=export.renames,
    )  # fmt: skip


def _table(path: Path, records: list[Record], separator: str | None, listed: Collection[str]) -> Table:
    if is_short_form(records):
        return _exported(path, read_short_form(path, records), listed)
    if not records:
        raise UserError(f"{path} has no row, need one for each image: add them")
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    file = find_column(columns, FILE)
    if file is None:
        raise UserError(f"{path} has the columns {columns}, need one with the image's name: call it `file`")
    tags = find_column(columns, TAGS + TAG)
    others = [each for each in columns if each not in (file, tags)]
    split, parts = _splits(path, records, others, hot=tags is None)
    if tags is None:
        classes = tuple(column for column in columns if column not in (file, split))
        how, names = "a 0-or-1 column per class", _hot_tags(path, records, columns, classes)
    else:
        classes, (how, names) = (), _named_tags(path, records, tags, separator, listed)
        if sure := find_column(others, CONFIDENCE):
            how, names = f"{how}, none where {sure!r} is 0", _confident(path, records, sure, names)
    missing = Counter(name for own in names for name in own if is_missing(name))
    missing = Counter({name: count for name, count in missing.items() if name not in {*listed, *classes}})
    rows = [
        Row(
            _file(path, record, file),
            clean(name for name in own if name not in missing),
            part,
            _at(path, record),
        )
        for record, own, part in zip(records, names, parts, strict=True)
    ]
    doubts = [
        f"{path} says {name!r} for {count} images, read as no tag: list it in classes.txt if it is a class"
        for name, count in missing.items()
    ]
    found = {tag for row in rows for tag in row.tags} - {*listed, *clean(classes)}
    if found and all(tag.casefold() in _ANSWERS for tag in found):
        problem = f"{path} has {' and '.join(sorted(found))} in column {tags!r}, read as classes"
        remedy = f"call the column by that class, as in `{file},cat`: 0 is then background"
        doubts.append(f"{problem}: if they say whether a photo shows one class, {remedy}")
    if tags is not None and plain(tags) in TAG and all(len(own) < 2 for own in names):
        merged = _merged(rows)
        how = how if len(merged) == len(rows) else "a row for each photo and tag"
        rows = merged
    return Table(rows, f"{path.name}, {how}", clean(classes), tuple(doubts))


def _merged(rows: Iterable[Row]) -> list[Row]:
    """One row for each image and split, with the tags of all its rows."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        first = found.setdefault((row.file, row.split), row)
        found[row.file, row.split] = first._replace(tags=tuple(dict.fromkeys(first.tags + row.tags)))
    return list(found.values())


def _at(path: Path, record: Record) -> str:
    return f"{path} {record[0]}"


def _file(path: Path, record: Record, column: str) -> str:
    where, values = record
    file = values.get(column)
    if isinstance(file, int) and not isinstance(file, bool):
        file = str(file)
    if not isinstance(file, str) or not file.strip():
        raise UserError(f"{path} {where} has no image in {column!r}: write its file name there")
    return file.strip().replace("\\", "/")


def _splits(
    path: Path, records: list[Record], columns: Sequence[str], hot: bool
) -> tuple[str | None, list[str]]:
    """The column that names splits, if there is one, and its split, or empty text, in each record.

    Where the other columns are classes, which is ``hot``, one of them may be called ``train``.
    """
    named = find_column(columns, SPLIT)
    flagged = [each for each in columns if _is_flag(records, each)]
    if hot and [tidy(each).lower()[:5] for each in flagged] == ["train"]:
        flagged = []
    found = [named] if named else flagged or [each for each in columns if _names_splits(records, each)]
    if len(found) > 1:
        problem = f"{path} has the columns {found[0]!r} and {found[1]!r} that name splits"
        raise UserError(f"{problem}: write one column `split` instead")
    if not found:
        return None, [""] * len(records)
    read = _flag if flagged and not named else _split
    return found[0], [read(path, record, found[0]) for record in records]


def _flagged(column: str) -> str:
    """The split of a column such as ``is_valid`` or ``test``, whose cells are 0 or 1; else empty."""
    return split_of(match[1] or match[2]) if (match := _FLAG.fullmatch(tidy(column))) else ""


def _is_flag(records: list[Record], column: str) -> bool:
    asked = column[:2].lower() == "is"
    return _flagged(column) != "" and (asked or all(_text(record, column) in _ON_OFF for record in records))


def _names_splits(records: list[Record], column: str) -> bool:
    values = {str(values.get(column, "")) for _, values in records}
    return len({split_of(value) for value in values} - {""}) > 1 and all(map(split_of, values))


def _split(path: Path, record: Record, column: str) -> str:
    value = record[1].get(column)
    if split := split_of(str(value)):
        return split
    raise UserError(f"{_at(path, record)} has {column} {value!r}, need train, val or test: change it")


def _flag(path: Path, record: Record, column: str) -> str:
    """The split of such a column; what is not of it trains."""
    value, split = _ON_OFF.get(_text(record, column)), _flagged(column)
    if value is None:
        raise UserError(
            f"{_at(path, record)} has {record[1].get(column)!r} in {column!r}, need 0 or 1: change it"
        )
    if split == "train" and not value:
        problem = f"{path} has a column {column!r}, which does not say whether the others validate or test"
        raise UserError(f"{problem}: write a column `split` with train, val and test instead")
    return split if value else "train"


def _hot_tags(
    path: Path, records: list[Record], columns: Sequence[str], classes: tuple[str, ...]
) -> list[list[str]]:
    if not classes:
        raise UserError(f"{path} has the columns {list(columns)} and no tags: add a column `tags`")
    if len(classes) > MAX_CLASSES:
        problem = f"{path} has {len(classes)} columns beside the image's name, read as classes"
        raise UserError(
            f"{problem}, need {MAX_CLASSES} at most: leave some out, or name the column of tags `tags`"
        )
    if len(clean(classes)) < len([name for name in classes if not is_background(tidy(name))]):
        raise UserError(f"{path} has two columns of one name, but for what nobody sees: rename or delete one")
    for record in records:
        for name in classes:
            if _text(record, name) not in _ON_OFF:
                problem = f"{_at(path, record)} has {record[1].get(name)!r} in column {name!r}, need 0 or 1"
                raise UserError(f"{problem}: change it, or name the column of tags `tags`")
    return [[name for name in classes if _ON_OFF[_text(record, name)]] for record in records]


def _text(record: Record, column: str) -> str:
    return str(record[1].get(column)).strip().lower()


def _named_tags(
    path: Path, records: list[Record], column: str, separator: str | None, listed: Collection[str]
) -> tuple[str, list[list[str]]]:
    values = [(where, record.get(column)) for where, record in records]
    cells = [(where, cell) for where, cell in values if isinstance(cell, str) and not looks_like_list(cell)]
    singular = plain(column) in TAG
    mark = find_separator(path, cells, separator, listed, whole=singular or len(cells) < len(records))
    names = [_tags(path, record, column, mark) for record in records]
    answers = all(name in _ON_OFF and name not in listed for own in names for name in own)
    if answers and min(map(len, names)) == max(map(len, names)) > 1:
        raise UserError(_vector(path, column))
    how = "one tag per image" if cells else "tags as lists"
    if mark and any(mark in cell.strip() for _, cell in cells):
        how = f"tags separated by {'blanks' if mark == ' ' else repr(mark)}"
    return how, names


def _tags(path: Path, record: Record, column: str, mark: str) -> list[str]:
    value = record[1].get(column)
    if isinstance(value, str) and looks_like_list(value):
        try:
            value = parse_list(value)
        except ValueError as error:
            problem = f"{_at(path, record)} has the broken list {value!r} ({error})"
            raise UserError(f'{problem}, need ["cat", "dog"]: mend it') from error
    if isinstance(value, str):
        value = value.split(mark.strip() or None) if mark else [value]
        if torn := [name for name in value if looks_torn(name.strip())]:
            problem = f"{_at(path, record)} has {torn[0].strip()!r}, which a program printed"
            raise UserError(f'{problem}, need ["cat", "dog"] or cat;dog: mend it')
    if not isinstance(value, list) or not all(type(name) in (str, int) for name in value):
        problem = f"{_at(path, record)} has no list of names in {column!r} ({kind_of(value)})"
        raise UserError(f"{problem}: write one")
    if len(set(value)) < len(value) and all(str(name) in _ON_OFF for name in value):
        raise UserError(_vector(_at(path, record), column))
    return list(map(tidy, map(str, value)))


def _vector(where: object, column: str) -> str:
    problem = f"{where} has a 0 or 1 for each class in {column!r}"
    return f"{problem}, need names: write them, or a column for each class"


def _confident(path: Path, records: list[Record], column: str, names: list[list[str]]) -> list[list[str]]:
    """The tags of records that have a 1 in the column of confidence; 0 says that none is to be seen."""
    sure = [_ON_OFF.get(_text(record, column)) for record in records]
    if None in sure:
        record = records[sure.index(None)]
        problem = f"{_at(path, record)} has {column} {record[1].get(column)!r}, need 0 or 1"
        raise UserError(f"{problem}: keep the rows that are sure enough and delete the column")
    return [own if present else [] for own, present in zip(names, sure, strict=True)]
