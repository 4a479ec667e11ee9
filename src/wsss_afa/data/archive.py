"""Unpack tar and zip archives that nobody has to trust.

All entries are looked at before the first is written: only plain files and folders below the target are let
through, and no more bytes or entries than an honest archive has. The target appears when all of it is there.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from wsss_afa.data.download import require_space
from wsss_afa.errors import UserError

MAX_ENTRIES = 1_000_000
MAX_RATIO = 50  # of an archive's files to the archive; annotations in JSON reach about ten
_ALLOWANCE = 2**24  # bytes that an archive may unpack to whatever its ratio
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


def unpack(
    archives: list[Path], target: Path, folder: str = ".",
    track: Callable[..., Iterable[Any]] = lambda members, description: members,
) -> bool:  # fmt: skip
    """Unpack archives into one new folder by way of ``TARGET.partial``; do nothing if all of it is there.

    Return whether anything was done.

    Args:
        archives: tar, compressed or not, and zip.
        target: the folder to make; it must not exist, be empty, or hold all files of the archives.
        folder: what of the archives' content becomes the target.
        track: wraps the entries of an archive to show progress, as `rich.progress.Progress.track` does.

    Raises:
        UserError: an archive is damaged or not safe, the disk is full, or the target holds something else.
    """
    listed = {archive: list_files(archive) for archive in archives}
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        _require_same(listed, target, folder)
        return False
    require_space(target.parent, sum(sum(files.values()) for files in listed.values()))
    staging = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        for archive in archives:
            with _open(archive) as (members, extract):
                for member in track(list(members), description=archive.name):
                    extract(member, staging)
        if not (staging / folder).is_dir():
            raise UserError(f"{archives[0]} holds no folder {folder}, need it: copy the official archive")
        if target.is_dir():
            target.rmdir()
        (staging / folder).replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}): free the disk or choose another") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def list_files(archive: Path) -> dict[PurePosixPath, int]:
    """Bytes of an archive's files by their paths; a UserError says that it is missing, damaged or unsafe."""
    files, total = dict[PurePosixPath, int](), 0
    try:
        limit = MAX_RATIO * archive.stat().st_size + _ALLOWANCE
        with _open(archive) as (members, _):
            for count, (name, size, is_folder, is_plain) in enumerate(map(_describe, members), 1):
                path, total = PurePosixPath(name), total + size
                problems = {
                    f"the path {name!r}": path.is_absolute() or ".." in path.parts or set(name) & set("\\:"),
                    f"the link or device {name!r}": not is_plain,
                    f"{name!r} twice": path in files,
                    f"more than {limit / 1e6:.0f} MB": total > limit,
                    f"more than {MAX_ENTRIES} entries": count > MAX_ENTRIES,
                }
                if problem := next((problem for problem, found in problems.items() if found), ""):
                    raise UserError(f"{archive} has {problem}, need plain files: copy the official archive")
                files |= {} if is_folder else {path: size}
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error}): copy it anew") from error
    return files


@contextmanager
def _open(archive: Path) -> Iterator[tuple[Iterable[Any], Callable[[Any, Path], Any]]]:
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                yield tar, partial(tar.extract, filter="data")
        else:
            with zipfile.ZipFile(archive) as file:
                yield file.infolist(), file.extract
    except _DAMAGES as error:
        raise UserError(f"{archive} is damaged or no tar or zip ({error}): copy it anew") from error


def _describe(member: tarfile.TarInfo | zipfile.ZipInfo) -> tuple[str, int, bool, bool]:
    if isinstance(member, tarfile.TarInfo):
        return member.name, member.size, member.isdir(), member.isdir() or member.isreg()
    kind = stat.S_IFMT(member.external_attr >> 16)
    return member.filename, member.file_size, member.is_dir(), kind in (0, stat.S_IFDIR, stat.S_IFREG)


def _require_same(listed: dict[Path, dict[PurePosixPath, int]], target: Path, folder: str) -> None:
    wanted = [(archive, *item) for archive, files in listed.items() for item in files.items()]
    for archive, path, size in wanted:
        there = target / path.relative_to(folder) if path.is_relative_to(folder) else None
        if there and not (there.is_file() and there.stat().st_size == size):
            problem = f"is there without {path.name} of {archive.name}"
            raise UserError(f"{target} {problem}, need a new folder: set root to another")
