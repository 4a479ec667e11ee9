"""What programs say to people, as text and nothing else: mistakes that they can mend, and lines of output."""

from __future__ import annotations

from rich import get_console
from rich.console import Console


class UserError(ValueError):
    """What the user can mend: got, needed, what to do, in one printable line. Entry points print it alone."""

    def __init__(self, message: str) -> None:
        own = message.rpartition("wsss_afa.errors.UserError: ")[2]  # of a loader process's traceback
        super().__init__(printable(own.strip()))


def printable(text: object) -> str:
    """The text as one line that shows all of it.

    Line ends, escape sequences, invisible characters and bytes that are no text are escaped as in Python;
    everything else stays. Doing it twice changes nothing.

    Examples:
        >>> printable("caf\\udce9 [/b] \\x1b[31m")
        'caf\\\\udce9 [/b] \\\\x1b[31m'
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def say(word: str, text: object) -> None:
    """Print one line that begins with a word, above the progress bar if there is one."""
    line = f"{word:<9} {printable(text)}"
    get_console().print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def plain_console() -> Console:
    """A terminal on which text is text: no markup, no emoji names, and nothing is coloured by guess."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
