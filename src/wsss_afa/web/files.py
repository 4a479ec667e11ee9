"""What the pages are made of beside Python: style, script and template, as text."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> str:
    """The content of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
