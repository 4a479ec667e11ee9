"""The files that a page writes out: code blocks with a title."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_DOCS = Path(__file__).parents[2] / "docs"
ADDING_A_METHOD, ADDING_PARTS = _DOCS / "adding_a_method.md", _DOCS / "adding_parts.md"


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write each titled code block of a page to the file of its title, below a folder; return the files."""
    for title, content in _blocks(page):
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [folder / title for title in titles(page)]


def titles(page: Path) -> list[str]:
    """The files that a page writes out."""
    return [title for title, _ in _blocks(page)]


def _blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of a page's commands for a program, after its name, as a shell reads them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        shlex.split(line) for line in re.findall(rf"^python -m wsss_afa\.{program} (.+)$", text, re.MULTILINE)
    ]
