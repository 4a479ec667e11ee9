"""Download one file over HTTP, going on where an earlier attempt broke off.

What has come is kept as ``FILE.partial`` beside the file and asked for again with a range. The file gets its
name once it has the length and the checksum that it should have; a checksum is ``md5:…`` or ``sha256:…``.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
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

Tell = Callable[[int, "int | None"], None]
"""Called with the bytes that are there, and all of them where that is known."""


class Source(NamedTuple):
    """A file on a server."""

    url: str
    """http or https."""
    size: int | None = None
    """Bytes, where known beforehand."""
    checksum: str | None = None
    """``md5:…`` or ``sha256:…`` in hexadecimal digits, where known beforehand."""

    @property
    def name(self) -> str:
        """The last part of the address."""
        return urlsplit(self.url).path.rpartition("/")[2]


class _BrokenOffError(Exception):
    """Worth another request."""


def download(
    source: Source,
    path: Path,
    attempts: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
    tell: Tell = lambda done, total: None,
) -> str:
    """Fetch a file, unless it is there already.

    Args:
        source: What to fetch.
        path: Where it goes; folders are made.
        attempts: Requests before giving up, at least 1.
        wait: Seconds before the second request, doubled before each further one up to half a minute.
        timeout: Seconds of silence after which a connection counts as broken.
        tell: Progress.

    Returns:
        The checksum of the file.

    Raises:
        UserError: The server has no such file or another one, keeps breaking off, or the disk is full.
    """
    if path.is_file():
        return verify(path, source)
    if urlsplit(source.url).scheme not in ("http", "https") or not source.name:
        raise UserError(f"{source.url} is no address of a file, need http(s)://…/FILE: check base_url")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _insist(source, partial, attempts, wait, timeout, tell)
        found = _verify_or_delete(partial, source)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): free the disk or choose another one") from error
    return found


def verify(path: Path, source: Source) -> str:
    """Check the length and the checksum of a file.

    Returns:
        Its checksum, by the algorithm of the one that is known, else SHA-256.

    Raises:
        UserError: It is another file than the source's, or cannot be read.
    """
    algorithm = (source.checksum or "sha256:").partition(":")[0]
    if algorithm not in ("md5", "sha256"):
        raise UserError(f"checksum={source.checksum}, need md5:… or sha256:…: mend it")
    try:
        size = path.stat().st_size
        if source.size not in (None, size):
            raise UserError(f"{path} has {size} bytes, need {source.size}: delete it and run again")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it anew") from error
    found = f"{algorithm}:{digest.hexdigest()}"
    if source.checksum not in (None, found):
        raise UserError(f"{path} has {found}, need {source.checksum}: delete it and run again")
    return found


def require_space(folder: Path, size: int) -> None:
    """Check that a disk holds ``size`` more bytes; the folder need not exist yet.

    Raises:
        UserError: It does not.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, need {size / 1e9:.1f} GB: free some or choose another"
        )


def _verify_or_delete(partial: Path, source: Source) -> str:
    """A partial file with wrong bytes would only be gone on from."""
    try:
        return verify(partial, source)
    except UserError:
        partial.unlink()
        raise UserError(
            f"{source.url} sent other bytes than {source.checksum or source.size} says and they are deleted: "
            "run again, or set base_url to a mirror"
        ) from None


def _insist(source: Source, partial: Path, attempts: int, wait: float, timeout: float, tell: Tell) -> None:
    reason = "no attempt"
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(wait * 2 ** (attempt - 1), _LONGEST_WAIT))
        try:
            return _request(source, partial, timeout, tell)
        except _BrokenOffError as error:
            reason = str(error)
    raise UserError(
        f"{source.url} failed {attempts} times, last: {reason}; {_size(partial)} bytes are kept: run again "
        "to go on"
    )


def _request(source: Source, partial: Path, timeout: float, tell: Tell) -> None:
    """Fetch what is missing, in one request."""
    done = _size(partial)
    if source.size is not None and done > source.size:
        partial.unlink()
        done = 0
    if done == source.size:
        return
    with _open(source.url, done, timeout) as response:
        if response.status == 416:
            _require_complete(response, partial)
            return
        start, total = _offer(response, source, done)
        require_space(partial.parent, (total or start) - start)
        _save(response, partial, start, total, tell)
    _require_length(partial, total)


def _offer(response: HTTPResponse | HTTPError, source: Source, done: int) -> tuple[int, int | None]:
    """The first byte that the server sends, and the length of the whole where it is known."""
    first, total = _range(response)
    if response.status == 206 and first != done:
        raise _BrokenOffError(f"it sent another range than that from byte {done} on")
    if response.status != 206:
        length = response.headers.get("Content-Length", "")
        first, total = 0, int(length) if length.isdecimal() else None
    if source.size is not None and total not in (None, source.size):
        raise UserError(
            f"{source.url} offers {total} bytes, need {source.size}: it is another file, check base_url"
        )
    return first or 0, total if source.size is None else source.size


def _require_length(partial: Path, total: int | None) -> None:
    size = _size(partial)
    if total is not None and size > total:
        partial.unlink()
        raise _BrokenOffError(f"it sent more than {total} bytes")
    if total is not None and size < total:
        raise _BrokenOffError(f"it broke off at {size} of {total} bytes")


def _require_complete(response: HTTPResponse | HTTPError, partial: Path) -> None:
    """Where nothing is left to send, what is there is all of it, or none of it counts."""
    if _range(response)[1] != _size(partial):
        partial.unlink()
        raise _BrokenOffError("its file is shorter than what had come")


def _open(url: str, done: int, timeout: float) -> HTTPResponse | HTTPError:
    headers = {"User-Agent": "wsss-afa"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout)  # noqa: S310 - http(s)
    except HTTPError as error:
        if error.code == 416 and done:
            return error
        error.close()
        if error.code in _PASSING:
            raise _BrokenOffError(f"it answered {error.code} {error.reason}") from error
        raise UserError(
            f"{url} answered {error.code} {error.reason}, need the file: check base_url, or copy the file "
            "and set archives to its folder"
        ) from error
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from error
    return response


def _save(
    response: HTTPResponse | HTTPError, partial: Path, start: int, total: int | None, tell: Tell
) -> None:
    done = start
    with partial.open("ab" if start else "wb") as file:
        for chunk in _chunks(response):
            done += file.write(chunk)
            if total is not None and done > total:
                break
            tell(done, total)


def _chunks(response: HTTPResponse | HTTPError) -> Iterator[bytes]:
    """The body; only its reading, not the writing in between, counts as the network's failure."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _BrokenOffError(_reason(error)) from error
        if not chunk:
            return
        yield chunk


def _range(response: HTTPResponse | HTTPError) -> tuple[int | None, int | None]:
    """First byte and length of the whole, from ``Content-Range: bytes 5-9/10`` or ``bytes */10``."""
    part, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = part.partition("-")[0]
    return int(first) if first.isdecimal() else None, int(whole) if whole.isdecimal() else None


def _reason(error: Exception) -> str:
    """Of nested network errors, in one line."""
    inner = getattr(error, "reason", error)
    return " ".join(str(inner).split()) or type(inner).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
