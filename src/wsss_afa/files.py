"""Files that appear complete or not at all, whatever stops the program that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file; its folder is made if there is none.

    Args:
        path: Of the file.
        content: Text is written in UTF-8, file names in it that are no UTF-8 escaped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.partial")  # its length is independent of the name's
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
