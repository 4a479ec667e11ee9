"""Unpack tar and zip archives that nobody has to trust.

All entries are looked at before the first is written. Only files and folders below the target are let
through: no absolute path, no ``..``, no link of any kind, no device, no file twice, no password, and no more
bytes or entries than an honest archive has. The target appears when all of it is there.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from wsss_afa.data.download import require_space
from wsss_afa.errors import UserError

MAX_ENTRIES = 1_000_000
"""Most entries of an archive."""
MAX_RATIO = 50
"""Most times that an archive's files are larger than the archive; annotations in JSON reach about ten."""
_ALLOWANCE = 2**24  # bytes that an archive may unpack to whatever its ratio
_DAMAGES = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
    NotImplementedError,
)  # fmt: skip

Tell = Callable[[int], None]
"""Called with the number of files of an archive that are written."""


class Entry(NamedTuple):
    """A file or folder in an archive."""

    path: PurePosixPath
    """Below the target."""
    size: int
    """Bytes; 0 of a folder."""
    is_folder: bool
    """Otherwise it is a file."""
    member: tarfile.TarInfo | zipfile.ZipInfo
    """What the archive knows it by."""


def unpack(
    archives: list[Path], target: Path, folder: str = ".", tell: Callable[[Path, int], Tell] | None = None
) -> bool:
    """Unpack archives into one new folder, or do nothing if they are there already.

    The files go to ``TARGET.partial`` beside it first.

    Args:
        archives: Tar, compressed or not, and zip.
        target: The folder to make; it must not exist, be empty, or hold all files of the archives.
        folder: What of the archives' content becomes the target.
        tell: Asked with each archive and its number of entries for what to tell of its progress.

    Returns:
        Whether anything was done.

    Raises:
        UserError: An archive is damaged or not safe, the disk is full, or the target holds something else.
    """
    listed = {archive: list_entries(archive) for archive in archives}
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        _require_same(listed, target, folder)
        return False
    require_space(target.parent, sum(entry.size for entries in listed.values() for entry in entries))
    staging = target.with_name(f"{target.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        staging.mkdir(parents=True)
        for archive, entries in listed.items():
            _write(archive, entries, staging, tell(archive, len(entries)) if tell else lambda done: None)
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


def list_entries(archive: Path) -> list[Entry]:
    """All entries of an archive, once every one has been found harmless.

    Raises:
        UserError: The archive is missing, damaged or not safe.
    """
    try:
        with _reading(archive):
            limit = MAX_RATIO * archive.stat().st_size + _ALLOWANCE
            is_tar = tarfile.is_tarfile(archive)
            return list(_bounded(archive, _tar_entries(archive) if is_tar else _zip_entries(archive), limit))
    except OSError as error:
        raise UserError(f"{archive} cannot be read ({error}): copy it anew") from error


def _bounded(archive: Path, entries: Iterator[Entry], limit: int) -> Iterator[Entry]:
    """Stops before a bomb has gone off or a file is overwritten."""
    files, total = set[PurePosixPath](), 0
    for count, entry in enumerate(entries, 1):
        total += entry.size
        if total > limit or count > MAX_ENTRIES:
            raise _unsafe(archive, f"unpacks to more than {limit / 1e6:.0f} MB or {MAX_ENTRIES} entries")
        if entry.path in files:
            raise _unsafe(archive, f"has {entry.path} twice")
        if not entry.is_folder:
            files.add(entry.path)
        yield entry


def _tar_entries(archive: Path) -> Iterator[Entry]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()):
                kind = "link" if member.issym() or member.islnk() else "device"
                raise _unsafe(archive, f"has the {kind} {member.name!r}")
            size = member.size if member.isreg() else 0
            yield Entry(_safe_path(archive, member.name), size, member.isdir(), member)


def _zip_entries(archive: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, f"has the {'link' if kind == stat.S_IFLNK else 'device'} "
                              f"{member.filename!r}")  # fmt: skip
            if member.flag_bits & 1:
                raise _unsafe(archive, f"has {member.filename!r} under a password")
            path = _safe_path(archive, member.orig_filename)
            yield Entry(path, member.file_size, member.is_dir(), member)


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """Refuses names that could mean a place outside on any system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or re.search(r"^[A-Za-z]:|\\|\0", name):
        raise _unsafe(archive, f"has the path {name!r}")
    return path


def _write(archive: Path, entries: list[Entry], staging: Path, tell: Tell) -> None:
    with _reading(archive), _opener(archive) as read:
        for done, entry in enumerate(entries, 1):
            path = staging / entry.path
            if entry.is_folder:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with read(entry.member) as source, path.open("xb") as file:
                shutil.copyfileobj(source, file, 2**20)
            if path.stat().st_size != entry.size:
                raise EOFError(f"{entry.path} ends early")
            tell(done)


@contextmanager
def _opener(archive: Path) -> Iterator[Callable[..., IO[bytes]]]:
    """What opens the file of an entry's member."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield tar.extractfile  # type: ignore[misc]  # None of folders only
    else:
        with zipfile.ZipFile(archive) as file:
            yield file.open


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Errors of the archive itself become the user's."""
    try:
        yield
    except _DAMAGES as error:
        raise UserError(f"{archive} is damaged or no tar or zip ({error}): copy it anew") from error


def _require_same(listed: dict[Path, list[Entry]], target: Path, folder: str) -> None:
    for archive, entries in listed.items():
        for entry in entries:
            if entry.is_folder or not entry.path.is_relative_to(folder):
                continue
            path = target / entry.path.relative_to(folder)
            if not path.is_file() or path.stat().st_size != entry.size:
                raise UserError(
                    f"{target} is there without {path.name} of {archive.name}, need a new folder: set root "
                    "to another, or move it away"
                )


def _unsafe(archive: Path, problem: str) -> UserError:
    return UserError(f"{archive} {problem}, need plain files below one folder: copy the official archive")
