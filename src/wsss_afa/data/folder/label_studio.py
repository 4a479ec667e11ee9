"""Label Studio's exports as tags: JSON, and its shorter forms JSON-MIN and CSV.

JSON holds tasks, each with the annotations that people submitted; the shorter forms hold a row for each
annotation, with a column for each question. What is chosen and what regions are labelled with are tags. An
annotation without any says that the image shows no class; a task without annotation says nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from wsss_afa.data.folder.columns import FILE, TAG, TAGS, find_column
from wsss_afa.data.folder.records import IMAGE_SUFFIXES, Export, Record
from wsss_afa.errors import UserError

_SIGNS = {"annotation_id", "lead_time"}
"""Columns that nobody else writes."""
_OWN = {*_SIGNS, "annotator", "created_at", "updated_at", "id", "was_cancelled", "agreement"}
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What it puts before the name of a file that is uploaded."""


class _Answer(NamedTuple):
    """One annotation."""

    where: str
    file: str
    tags: list[str]
    when: str  # ISO time, which sorts as text


def is_tasks(content: Any) -> bool:
    """Whether JSON is a list of tasks."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and isinstance(first.get("data"), dict) and "annotations" in first


def is_short_form(records: Sequence[Record]) -> bool:
    """Whether the records of a table are those of JSON-MIN or CSV."""
    return bool(records) and records[0][1].keys() >= _SIGNS


def read_tasks(path: Path, content: list[Any]) -> Export:
    """The newest annotation of each task; skipped ones and tasks without any are left out.

    Raises:
        UserError: A task names no image, or has no list of annotations.
    """
    answers, questions, other = list[_Answer](), Counter[str](), 0
    for n, task in enumerate(content, 1):
        where = f"task {task.get('id', n)}" if isinstance(task, dict) else f"item {n}"
        if not is_tasks([task]) or not isinstance(task["annotations"], list):
            raise UserError(f"{path} {where} is no task of Label Studio: export the project anew")
        for annotation in _objects(path, where, task["annotations"]):
            if annotation.get("was_cancelled"):
                continue
            given = _objects(path, where, annotation.get("result") or [])
            results = [each for each in given if _names(each.get("value"))]
            other += bool(given and not results)
            questions.update({str(each.get("from_name") or "a question") for each in results})
            tags = [name for each in results for name in _names(each["value"])]
            answers.append(_Answer(where, _image(path, where, task["data"]), tags, _time(annotation)))
    export, problem = _export(path, answers, questions), f"{path} has {other} annotations without a name"
    doubt = f"{problem}, such as ratings, read as no tag: leave out what is no background"
    return export._replace(doubts=export.doubts + (doubt,) * bool(other))


def _objects(path: Path, where: str, values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise UserError(f"{path} {where} is no task of Label Studio: export the project anew")
    return values


def read_short_form(path: Path, records: Sequence[Record]) -> Export:
    """The newest row of each image; a UserError says that no column, or several, may hold its tags."""
    columns = dict.fromkeys(column for _, values in records for column in values)
    image = find_column(columns, FILE[:-1]) or _image_column(path, records[0][1])
    left = [column for column in columns if column not in {*_OWN, image}]
    tags = find_column(left, TAGS + TAG) or (left[0] if len(left) == 1 else None)
    if tags is None:
        raise UserError(f"{path} has the columns {left}, need one with the tags: call it `choice`")
    kept = [record for record in records if str(record[1].get("was_cancelled")).lower() not in ("true", "1")]
    answers = [
        _Answer(where, _place(str(values.get(image, ""))), _names(values.get(tags)), _time(values))
        for where, values in kept
    ]
    return _export(path, answers, Counter())


def original_name(name: str, names: Mapping[str, str]) -> str:
    """The photo that was uploaded under this name, by ``names`` of photos as `upload_name` has them."""
    stripped = _UPLOAD.sub("", name, count=1)
    return names.get(upload_name(stripped), stripped)


def upload_name(name: str) -> str:
    """A name as an upload leaves it: blanks are underscores, other signs are gone."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _export(path: Path, answers: Sequence[_Answer], questions: Counter[str]) -> Export:
    newest: dict[str, _Answer] = {}
    for answer in sorted(answers, key=lambda each: each.when):
        newest[answer.file] = answer
    records: list[Record] = [
        (each.where, {"file": each.file, "tags": each.tags}) for each in answers if newest[each.file] is each
    ]
    doubts = list[str]()
    if len(answers) > len(records):
        more = len(answers) - len(records)
        doubts.append(f"{path} has {more} further annotations of the same photos: the newest of each is read")
    if len(questions) > 1:
        asked = " and ".join(sorted(questions))
        doubts.append(f"{path} has answers to {asked}, all read as tags: export without what is no tag")
    return Export("Label Studio's", records, doubts=tuple(doubts), renames=True)


def _names(value: Any) -> list[str]:
    """What was chosen, or regions are labelled with, wherever it stands in a value or in its JSON."""
    if isinstance(value, str):
        try:
            return _names(json.loads(value)) if value.strip()[:1] in ("[", "{") else [value] * bool(value)
        except ValueError:
            return [value]
    if type(value) is int:
        return [str(value)]
    if isinstance(value, dict):
        value = [
            own for key, own in value.items() if key in ("choices", "taxonomy") or key.endswith("labels")
        ]
    return list(dict.fromkeys(_each_name(value))) if isinstance(value, list) else []


def _each_name(values: list[Any]) -> Iterator[str]:
    for value in values:
        yield from [str(value)] if type(value) in (str, int) else _names(value)


def _time(values: Mapping[str, Any]) -> str:
    return str(values.get("updated_at") or values.get("created_at") or "")


def _image(path: Path, where: str, data: Mapping[str, Any]) -> str:
    column = find_column(data, FILE) or _image_column(path, data)
    if not isinstance(data[column], str):
        raise UserError(f"{path} {where} has no image in {column!r}: export the project anew")
    return _place(data[column])


def _image_column(path: Path, values: Mapping[str, Any]) -> str:
    for column, value in values.items():
        if isinstance(value, str) and Path(_place(value)).suffix.lower() in IMAGE_SUFFIXES:
            return column
    raise UserError(f"{path} has tasks without an image, which has to stand in `image`: export anew")


def _place(address: str) -> str:
    """The path in an address: of a file uploaded, in local storage, in a bucket, or of the web."""
    try:
        parts = urlsplit(address)
    except ValueError:  # half an address of IPv6
        return address
    if len(parts.scheme) < 2 and not address.startswith("/data/"):
        return address
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)
