"""Download one file over HTTP, going on where an earlier attempt broke off.

What has come is kept as ``FILE.partial`` beside the file and asked for again with a range. The file gets its
name once it has the length and the checksum that it should have; a checksum is ``md5:…`` or ``sha256:…``.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from wsss_afa.errors import UserError

_CHUNK = 2**18
_LONGEST_WAIT = 30.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # states of a server that another request may find gone

Tell = Callable[[int], None]  # called with the bytes that are there


class Source(NamedTuple):
    """A file on a server."""

    url: str  # http or https
    size: int  # bytes
    checksum: str  # md5:… or sha256:… in hexadecimal digits

    @property
    def name(self) -> str:
        """The last part of the address."""
        return urlsplit(self.url).path.rpartition("/")[2]


class _BrokenOffError(Exception):
    """Worth another request."""


def download(
    source: Source, path: Path, attempts: int = 5, wait: float = 1.0, timeout: float = 30.0,
    tell: Tell = lambda done: None,
) -> None:  # fmt: skip
    """Fetch a file, or check it if it is there already; folders are made.

    There are 1 or more ``attempts``, with ``wait`` seconds before the second, doubled before each further one
    up to half a minute; after ``timeout`` seconds of silence a connection counts as broken. A UserError says
    that the server has no such file or another one, keeps breaking off, or that the disk is full.
    """
    if path.is_file():
        return verify(path, source)
    if urlsplit(source.url).scheme not in ("http", "https") or not source.name:
        raise UserError(f"{source.url} is no address of a file, need http(s)://…/FILE: check base_url")
    partial = partial_path(path)
    reason = "no attempt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(attempts):
            if attempt:
                time.sleep(min(wait * 2 ** (attempt - 1), _LONGEST_WAIT))
            try:
                _request(source, partial, timeout, tell)
                break
            except _BrokenOffError as error:
                reason = str(error)
        else:
            problem = f"failed {attempts} times, last: {reason}; {_size(partial)} bytes are kept"
            raise UserError(f"{source.url} {problem}: run again to go on")
        try:
            verify(partial, source)
        except UserError:
            partial.unlink()  # else the next run would go on from wrong bytes
            problem = f"sent other bytes than {source.checksum} says and they are deleted"
            raise UserError(f"{source.url} {problem}: run again, or set base_url to a mirror") from None
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): free the disk or choose another one") from error


def partial_path(path: Path) -> Path:
    """Where a file lies until it is whole."""
    return path.with_name(f"{path.name}.partial")


def verify(path: Path, source: Source) -> None:
    """Raise a UserError unless a file can be read and has the source's length and checksum."""
    algorithm = source.checksum.partition(":")[0]
    if algorithm not in ("md5", "sha256"):
        raise UserError(f"checksum={source.checksum}, need md5:… or sha256:…: mend it")
    try:
        found, wanted = f"{path.stat().st_size} bytes", f"{source.size}"
        if path.stat().st_size == source.size:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
            found, wanted = f"{algorithm}:{digest.hexdigest()}", source.checksum
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it anew") from error
    if found != wanted:
        raise UserError(f"{path} has {found}, need {wanted}: delete it and run again")


def require_space(folder: Path, size: int) -> None:
    """Raise a UserError unless a disk holds ``size`` more bytes; the folder need not exist yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        space = f"{free / 1e9:.1f} GB free, need {size / 1e9:.1f} GB"
        raise UserError(f"{folder} has {space}: free some or choose another")


def _request(source: Source, partial: Path, timeout: float, tell: Tell) -> None:
    if (done := _size(partial)) > source.size:
        partial.unlink()
        done = 0
    if done == source.size:
        return
    headers = {"User-Agent": "wsss-afa"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with _network():
            response = urlopen(Request(source.url, headers=headers), timeout=timeout)  # noqa: S310 - http(s)
    except HTTPError as error:
        error.close()
        answer = f"answered {error.code} {error.reason}"
        if error.code in _PASSING:
            raise _BrokenOffError(f"it {answer}") from error
        raise UserError(f"{source.url} {answer}, need the file: check base_url or set archives") from error
    with response:
        done = _first_byte(response, source, done)
        require_space(partial.parent, source.size - done)
        with partial.open("ab" if done else "wb") as file:
            while done <= source.size:
                with _network():
                    chunk = response.read(_CHUNK)
                if not chunk:
                    break
                done += file.write(chunk)
                tell(min(done, source.size))
    if done > source.size:
        partial.unlink()
        raise _BrokenOffError(f"it sent more than {source.size} bytes")
    if done < source.size:
        raise _BrokenOffError(f"it broke off at {done} of {source.size} bytes")


@contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        inner = getattr(error, "reason", error)
        raise _BrokenOffError(" ".join(str(inner).split()) or type(inner).__name__) from error


def _first_byte(response: HTTPResponse, source: Source, done: int) -> int:
    if response.status == 206:  # Content-Range: bytes 5-9/10
        part, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if part.partition("-")[0] != str(done):
            raise _BrokenOffError(f"it sent another range than that from byte {done} on")
    else:
        done, total = 0, response.headers.get("Content-Length", "")
    if total.isdecimal() and int(total) != source.size:
        raise UserError(f"{source.url} offers {total} bytes, need {source.size}: check base_url")
    return done


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
