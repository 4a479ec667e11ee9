"""Names that people give to classes and files: those that mean the same have one spelling.

They come from tables and folders of anybody. `tidy` is that spelling; `look` tells which would look alike.
"""

from __future__ import annotations

import re
import unicodedata

from wsss_afa.errors import printable

_BLANKS = "\u2800"  # Braille without a dot; what else is blank, Python knows
_INVISIBLE = "\u034f\u115f\u1160\u3164\uffa0"  # letters and marks that show nothing
_TWINS = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u03bf\u03bd"
    "\u0432\u043a\u043c\u043d\u0442\u2019\u2018\u02bc\u00b4",
    "aeopcyxijshdovbkmht''''",
)  # Cyrillic, Greek and quotation marks, and their Latin twins, be it as capitals


def tidy(name: str) -> str:
    """The one form of a name, which is printable: composed (NFC), single blanks, nothing invisible.

    Examples:
        >>> tidy("hot\\u00a0 do\\u200bg ") == "hot dog"
        True
    """
    if name.isascii() and name.isprintable():  # most are, of what may be millions
        return " ".join(name.split())
    seen = (character for character in unicodedata.normalize("NFC", name) if not _hidden(character))
    spaced = "".join(" " if character in _BLANKS else character for character in seen)
    return printable(" ".join(spaced.split()))


def is_background(name: str) -> bool:
    """Whether a name means no class at all: ``background``, be it written ``_background_`` or in capitals."""
    return re.sub(r"[\W_]", "", name).casefold() == "background"


def look(name: str) -> str:
    """A key that is equal for names which people take for the same, whatever their case, width and script.

    Examples:
        >>> look("\\u0421\\u200bat") == look("cat")  # the first letter is Cyrillic
        True
    """
    plain = unicodedata.normalize("NFKC", tidy(name).replace("\u00b4", "'")).casefold().translate(_TWINS)
    if number := re.fullmatch(r"0*(\d+)(\.0*)?", plain):  # 1, 01 and 1.0 are one number
        plain = number[1]
    return "".join("-" if unicodedata.category(character) == "Pd" else character for character in plain)


def told_apart(one: str, other: str) -> str:
    """Two names for a message; what differs but looks the same is escaped."""
    if one.lower() != other.lower() and look(one) == look(other):
        return f"{one!a} and {other!a}"
    return f"{printable(one)!r} and {printable(other)!r}"


def _hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return (kind == "Cf" or selector or character in _INVISIBLE) and not character.isspace()
