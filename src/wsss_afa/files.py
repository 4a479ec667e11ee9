"""Where the configuration lies; files that appear complete or not at all, whatever stops their program."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PACKAGED = Path(__file__).parent / "conf"
CONFIG_DIR = str(_PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf")
"""Absolute path of the configuration: inside the wheel, or beside ``src`` in a checkout."""


def write_whole(
    path: Path, content: bytes | memoryview | str, check: Callable[[Path], object] | None = None
) -> None:
    """Write a file, to the disk itself; its folder is made if there is none.

    Args:
        path: Of the file.
        content: Text is written in UTF-8, file names in it that are no UTF-8 escaped.
        check: Reads what was written and raises unless it is right, before the file takes its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name())
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_name() -> str:
    """A name for a file that is being written; no other process, thread or machine has the same."""
    return f".{os.getpid()}-{secrets.token_hex(4)}.partial"  # its length is independent of the file's name


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk itself, where the system lets folders be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_stored(path: Path) -> None:
    """Refuse a zip file that holds more bytes than it has: one that is compressed, or counts bytes twice.

    Raises:
        ValueError: it does.
        OSError: it cannot be read now.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        inside = sum(info.file_size for info in archive.infolist())
    if inside > path.stat().st_size:
        raise ValueError(
            f"{inside} bytes are packed into {path.stat().st_size}: torch.save does not compress"
        )
