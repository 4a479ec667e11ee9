"""The files that a page writes out: code blocks with a title."""

from __future__ import annotations

import re
from pathlib import Path

ADDING_A_METHOD = Path(__file__).parents[2] / "docs" / "adding_a_method.md"


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write each titled code block of a page to the file of its title, below a folder; return the files."""
    blocks = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```$', page.read_text(encoding="utf-8"), re.M | re.S)
    for title, content in blocks:
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return [folder / title for title, _ in blocks]
