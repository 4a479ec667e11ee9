"""What stands between the tags of a cell, found out without guessing."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from wsss_afa.data.names import is_background, tidy
from wsss_afa.errors import UserError

_MARKS = ";|,\uff1b\uff0c\u3001\u060c\u061b"  # also those of Chinese, Japanese and Arabic
_MISSING = {
    "nan", "-nan", "na", "n/a", "n.a.", "n.d.", "#n/a", "#na", "#n/a n/a", "nat", "\\n", "blank", "null",
    "none", "nil", "missing", "undefined",
}  # fmt: skip
Cell = tuple[str, str]  # where it stands, and its text


def find_separator(
    path: Path, cells: Sequence[Cell], given: str | None, listed: Collection[str], whole: bool
) -> str:
    """The mark between tags, a blank, or nothing where each cell is one name.

    Args:
        path: Of the table, for messages.
        cells: Those that are no lists.
        given: What the user says.
        listed: Names of the classes, if they are known.
        whole: Whether a cell without any mark is one name, whatever blanks are in it.

    Raises:
        UserError: It can be read in two ways.
    """
    if given:
        return given
    texts = {tidy(text): where for where, text in reversed(cells)}
    readings: list[str] = [mark for mark in ("", *_MARKS, " ") if listed and _all_listed(texts, mark, listed)]
    if readings:
        return readings[0]
    found = {mark: where for mark in _MARKS for text, where in texts.items() if mark in text}
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        problem = f"{path} has {one!r} between tags on {here} and {other!r} on {there}"
        raise UserError(f"{problem}, need one separator: change the others, or set {_setting(one)}")
    return next(iter(found), "") if found or whole or listed else _blanks(path, texts)


def _all_listed(texts: Collection[str], mark: str, listed: Collection[str]) -> bool:
    parts = (part for text in texts for part in (text.split(mark.strip() or None) if mark else [text]))
    names = filter(None, map(tidy, parts))
    return all(name in listed or is_background(name) or is_missing(name) for name in names)


def is_missing(name: str) -> bool:
    """Whether a name stands for a missing value: NaN, None, N/A, an error of Excel, or marks alone."""
    plain = name.strip("()<>[]").casefold()
    marks = name != "" and all(
        (c.isascii() and not c.isalnum()) or unicodedata.category(c) == "Pd" for c in name
    )
    return plain in _MISSING or marks or re.fullmatch(r"#[A-Z]+(/0)?[!?]", name) is not None


def _blanks(path: Path, texts: dict[str, str]) -> str:
    """Whether blanks separate tags or stand in them: the former if all words come in several mixtures."""
    several = [text for text in texts if " " in text]
    if not several:
        return ""
    cells = Counter(word for text in texts for word in set(text.split()))
    mixed = all(cells[word] > 1 for text in several for word in text.split())
    if mixed and len({len(text.split()) for text in texts if text}) > 1:
        return " "
    example = several[0]
    problem = f"{path} {texts[example]} has {example!r}, which may be one tag or {len(example.split())}"
    settings = f"{_setting(';')} for one, {_setting(' ')} for several"
    raise UserError(f"{problem}: set {settings}, or list the classes in classes.txt")


def _setting(mark: str) -> str:
    return f"""'data.separator="{mark}"'"""
