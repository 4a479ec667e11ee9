"""Lists of names that a program wrote into a cell as text: Python's, NumPy's, pandas' and JSON's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_ITEM = re.compile(rf"(?:(?:np|numpy)\.)?(?:str_\((?P<wrapped>{_QUOTED})\)|(?P<plain>{_QUOTED}|\d+))")
_OPEN = re.compile(r"""[\[{]|[\w.]*\(\s*(?:[\[({'"]|\))""")
_CALL = re.compile(r"[\w.]+\((?P<inside>.*)\)", re.DOTALL)
_KEYWORDS = re.compile(r""",\s*(?:dtype|name|length|ordered|categories|maxlen)\s*=.*$""", re.DOTALL)
_ESCAPE = re.compile(r"""\\(?:(['"\\])|x([\da-fA-F]{2})|u([\da-fA-F]{4}))""")
_TORN = re.compile(r"""[\[{(]\s*['"]|['"]\s*[\]})]$|^[bu]?(['"]).+\1$|\bdtype: |\ufffd|[:=]\s*[01]?\.\d+$""")
_PAIRS = {"[": "]", "{": "}", "(": ")"}


def looks_like_list(text: str) -> bool:
    """Whether text begins as a list does: with a bracket, or as ``set(…)`` and ``array([…])``."""
    return _OPEN.match(text.strip()) is not None


def looks_torn(name: str) -> bool:
    """Whether a name is a piece of what a program printed: quoted, half in brackets, with a type."""
    return _TORN.search(name) is not None or name.count("(") != name.count(")")


def parse_list(text: str) -> list[str]:
    """The names in a list.

    Items are quoted, or whole numbers, with commas between them, or as NumPy prints them with blanks. Also
    read are tuples, sets, ``array([…], dtype=object)``, ``Index([…])``, and an object with one list in it,
    such as Label Studio's ``{"choices": ["cat"]}``. A ValueError refuses anything else.

    Examples:
        >>> parse_list("['cat' 'dog']"), parse_list("Index(['a'], dtype='object')"), parse_list("set()")
        (['cat', 'dog'], ['a'], [])
    """
    text = text.strip()
    try:
        return _names(json.loads(text))
    except (ValueError, RecursionError):
        pass
    return _items(_inside(text))


def _names(value: object) -> list[str]:
    """The names in JSON: of a list, or of the only list in an object."""
    if isinstance(value, dict) and len(value) < 2:
        value = next(iter(value.values()), [])
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("no list")
    if not all(type(name) in (str, int) for name in value):
        raise ValueError("a list of other things than names")
    return list(map(str, value))


def _inside(text: str) -> str:
    """What stands between the brackets, without the name of a type and its settings."""
    while match := _CALL.fullmatch(text):
        text = _KEYWORDS.sub("", match["inside"]).strip()
        if not text:
            return ""
    if text[:1] not in _PAIRS or text[-1:] != _PAIRS[text[0]]:
        raise ValueError("no closing bracket")
    return text[1:-1].strip()


def _items(text: str) -> list[str]:
    items, marks, place = list[str](), set[str](), 0
    while place < len(text):
        match = _ITEM.match(text, place)
        if match is None:
            raise ValueError("an item that is no name in quotation marks")
        items.append(_unquoted(match["wrapped"] or match["plain"]))
        gap = re.compile(r"\s*,?\s*").match(text, match.end())
        assert gap is not None
        place = gap.end()
        if place < len(text):
            marks.add(gap[0].strip() or gap[0][:1])
    if len({mark.isspace() for mark in marks}) > 1 or "" in marks:
        raise ValueError("items without a separator")
    return items


def _unquoted(item: str) -> str:
    if item[0] not in ("'", '"'):
        return item
    return _ESCAPE.sub(
        lambda found: chr(int(found[2] or found[3], 16)) if not found[1] else found[1], item[1:-1]
    )
