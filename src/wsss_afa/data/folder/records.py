"""Tag files, CSV, JSON or JSON lines, as records: a dictionary for each image, and where it stands."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from wsss_afa.errors import UserError

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2",
    ".ppm", ".pgm", ".pbm", ".tga",
})  # fmt: skip
"""Endings of files that are taken for images, in small letters."""
TAG_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
"""Endings of files in which tags may stand."""
_MAPPING = '{"a.jpg": ["cat"]}'
_EXAMPLE = '{"file": "a.jpg", "tags": ["cat"]}'
Record = tuple[str, dict[str, Any]]
"""Where it stands, such as "line 3", and its values by column."""


class Export(NamedTuple):
    """What an annotation tool wrote."""

    tool: str  # its name in the genitive, for people
    records: list[Record]  # ``file``, ``tags`` as a list, and ``split`` where it says so
    class_names: tuple[str, ...] = ()  # in the tool's order; empty where it does not say
    doubts: tuple[str, ...] = ()  # what may be meant in another way, in a line each
    renames: bool = False  # whether files may have another name than the photos they were


def read_text(path: Path) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; a UserError says that it has another encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8: save the file with that encoding") from error


def find_classes(root: Path) -> Path | None:
    """The file ``classes.txt`` of a folder, in whatever case; a UserError says that there are two."""
    found = [each for each in sorted(root.iterdir()) if each.name.lower() == "classes.txt" and each.is_file()]
    if len(found) > 1:
        raise UserError(f"{root} has {found[0].name} and {found[1].name}, need one: delete the other")
    return found[0] if found else None


def read_classes(path: Path | None) -> list[str]:
    """The lines of a list of classes; those that begin with ``#`` are comments, and empty here."""
    lines = read_text(path).splitlines() if path else []
    return ["" if line.startswith("#") else line for line in lines]


def csv_records(path: Path) -> list[Record]:
    """Read a CSV with a header, separated by what the header has most of: comma, semicolon or tab.

    Raises:
        UserError: There is no header, or a line does not fit it.
    """
    text, above = read_text(path), 0
    if stated := re.match(r'"?sep=([;,|\t])"?\r?\n', text, re.IGNORECASE):  # Excel's own first line
        text, above = text[stated.end() :], 1
    mark = stated[1] if stated else max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        lines = [(f"line {reader.line_num + above}", line) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        place = f"{path} line {reader.line_num + above}"
        raise UserError(f"{place} is no CSV ({error}): look for a stray quotation mark") from error
    if not lines:
        raise UserError(f"{path} is empty, need a header `file,tags` and a line per image: write them")
    header = [cell.strip() for cell in lines[0][1]]
    if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in header):
        raise UserError(f"{path} starts with {header[0]!r}, need a header: put `file,tags` on top")
    for where, cells in lines[1:]:
        if len(cells) != len(header):
            counts = f"{len(cells)} fields, its header {len(header)}"
            remedy = "put tags in quotation marks, and keep the comma before an empty cell"
            raise UserError(f"{path} {where} has {counts}: {remedy}")
    kept = _without_nameless(path, header, lines[1:])
    twice = [cell for cell, count in Counter(header[i] for i in kept).items() if count > 1]
    if twice:
        raise UserError(f"{path} has two columns {twice[0]!r}, need different names: rename or delete one")
    return [(where, {header[i]: cells[i] for i in kept}) for where, cells in lines[1:]]


def _without_nameless(path: Path, header: list[str], lines: list[tuple[str, list[str]]]) -> list[int]:
    """The columns that have a name; a UserError unless others are empty or number rows, as pandas does."""
    nameless = [i for i, cell in enumerate(header) if not cell or re.fullmatch(r"Unnamed: \d+", cell)]
    for column in nameless:
        cells = [line[column].strip() for _, line in lines]
        counts = all(map(str.isdecimal, cells)) and len(set(cells)) == len(cells)
        if any(cells) and not counts:
            raise UserError(
                f"{path} has no name for column {column + 1}, need one: write it into the first line"
            )
    return [i for i in range(len(header)) if i not in nameless]


def jsonl_records(path: Path) -> list[Record]:
    """Read an object from each line; a UserError says that one holds something else."""
    lines = [(n, line) for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return [_as_record(path, f"line {n}", parse_json(path, line, n)) for n, line in lines]


def json_records(path: Path, content: Any) -> list[Record]:
    """Take a list of objects as it is, and a mapping as pairs of file and tags; else raise a UserError."""
    if isinstance(content, dict):
        for file, tags in content.items():
            if isinstance(tags, dict):
                problem = f"{path} entry {file!r} holds an object, need the tags of an image"
                raise UserError(f"{problem}: write {_MAPPING}, or export COCO's three lists")
        return [(f"entry {file!r}", {"file": file, "tags": tags}) for file, tags in content.items()]
    if isinstance(content, list):
        return [_as_record(path, f"item {n}", item) for n, item in enumerate(content, 1)]
    raise UserError(f"{path} holds {kind_of(content)}, need a list of objects such as {_EXAMPLE}: rewrite it")


def _as_record(path: Path, where: str, item: Any) -> Record:
    if not isinstance(item, dict):
        raise UserError(f"{path} {where} is {kind_of(item)}, need an object: write it like {_EXAMPLE}")
    return where, item


def parse_json(path: Path, text: str, line: int = 0) -> Any:
    """Parse JSON without COCO's outlines; ``line`` is where the text stands, if it is one line of the file.

    Raises:
        UserError: It is no JSON, or an object has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise UserError(f"{path} has {twice!r} twice in one object: keep one of the two")
        content.pop("segmentation", None)  # large, and of no use here
        return content

    try:
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno} column {error.colno}"
        raise UserError(f"{path} {place} is no JSON ({error.msg}): mend it there") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply, need a list of objects: rewrite it") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits
        raise UserError(f"{path} has a number that is too long, need {_EXAMPLE}: mend it") from error


def kind_of(value: Any) -> str:
    """What a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
