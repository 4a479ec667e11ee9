"""Data sets in shards: a few large files in place of many small ones, on a disk or in an object store.

A shard is a tar file in the form of WebDataset: members of one sample share their key, images lie there byte
for byte as they were found, masks are PNG, and a JSON gives name and tags. Beside it lies an index with the
place and the checksum of every member; ``manifest.json`` counts and hashes the shards of all splits.

Why not a streaming library: which image a step sees must be a pure function of (seed, step). WebDataset
(1.0.2, BSD, 75 kB, needs braceexpand and PyYAML) reads shards from their start, deals them to processes and
loader workers, so that the order depends on their number, and leaves resuming to the caller. LitData (0.2.76,
Apache-2.0, 400 kB, needs boto3, obstore and tifffile) writes a form of its own, deals its chunks out likewise
and keeps a state to resume from. With an index the order is arithmetic, and what remains to a library is to
read bytes from a to b of a file anywhere: fsspec (BSD, no dependencies, comes with torch) does that for
disks, HTTP, S3, Google Cloud and others. WebDataset's form is kept, so that its readers read our shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from wsss_afa.data.images import read_image, read_mask
from wsss_afa.types import Sample
from wsss_afa.errors import UserError

MANIFEST = "manifest.json"
_REMEDY = f"copy it anew (its sha256 is in {MANIFEST}), or set data.skip_broken=true to go on without it"
MAX_INDICES = 32
"""Indices of shards that a process keeps in memory."""
RETRY_AFTER = (0.5, 2.0)
"""Seconds before a failed read is tried again; a file that is not there is not waited for."""


class Member(NamedTuple):
    """Where a file of a shard lies."""

    file: str
    """Its name in the tar."""
    offset: int
    """Of its first byte."""
    size: int
    """In bytes."""
    crc32: int
    """Of its bytes."""


class Entry(NamedTuple):
    """One sample of a shard's index."""

    name: str
    """Unique in its split."""
    tags: list[int]
    """Class indices."""
    image: Member
    """Image file."""
    mask: Member | None
    """PNG of labels, in splits with masks."""


class Shard(NamedTuple):
    """One row of the manifest."""

    file: str
    """Tar file, relative to the root; the index has its name with .json."""
    images: int
    bytes: int
    sha256: str
    """Of the tar file."""
    index_sha256: str
    """Of the index."""


class Split(NamedTuple):
    """Shards of one split."""

    has_masks: bool
    """Whether samples carry the mask."""
    tag_counts: dict[str, int]
    """Images of each class."""
    shards: list[Shard]
    """In order of their images' indices."""


class Manifest(NamedTuple):
    """What a folder of shards holds."""

    root: str
    """Folder or URL."""
    class_names: tuple[str, ...]
    """C foreground classes."""
    upright: bool
    """Whether images are turned as their EXIF orientation says."""
    splits: dict[str, Split]
    """By name."""

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            UserError: There is none.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.root} has the splits {', '.join(self.splits)}, need {name!r}: write it with "
                "`python -m wsss_afa.shard`, or set trainer.limit_val_batches=0 to go without validation"
            )
        return self.splits[name]


def read_manifest(root: str) -> Manifest:
    """Read what ``write_shards`` wrote.

    Args:
        root: Folder, or a URL that fsspec knows.

    Raises:
        UserError: There is no manifest, or it cannot be read.
    """
    root = root.rstrip("/") if "://" in root else str(Path(root).expanduser())
    content = fetch(
        f"{root}/{MANIFEST}", hint="set data.root to a folder that `python -m wsss_afa.shard` wrote"
    )
    try:
        parsed = json.loads(content)
        splits = {
            name: Split(split["has_masks"], split["tag_counts"], [_checked(row) for row in split["shards"]])
            for name, split in parsed["splits"].items()
        }
        return Manifest(root, tuple(parsed["class_names"]), parsed["upright"], splits)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{root}/{MANIFEST} is no manifest of shards ({type(error).__name__}: {error}): copy it anew"
        ) from error


def _checked(row: dict[str, Any]) -> Shard:
    """A row whose file lies below the root, and has no more images than fit into it."""
    shard = Shard(**row)
    path = PurePosixPath(shard.file)
    if path.is_absolute() or path.suffix != ".tar" or ".." in path.parts or re.search(r"[:\\\0]", shard.file):
        raise ValueError(f"the file {shard.file!r}, need a tar below the root")
    if not 0 <= shard.images <= shard.bytes // tarfile.BLOCKSIZE:
        raise ValueError(f"{shard.images} images in {shard.bytes} bytes of {shard.file}")
    return shard


class ShardSet:
    """Samples of one split, each read where it lies; no shard is read from its start or kept in memory.

    Args:
        manifest: From ``read_manifest``.
        split: ``train`` or ``val``.

    Raises:
        UserError: There is no such split; from an item, its shard is missing or damaged.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.class_names = manifest.class_names
        self.shards = manifest.split(split).shards
        self._root, self._upright = manifest.root, manifest.upright
        self._ends = np.cumsum([shard.images for shard in self.shards])

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Tags of all images, (n, C); every index is read to know them."""
        labels = np.zeros((len(self), len(self.class_names)), bool)
        entries = (entry for shard in self.shards for entry in self._index(shard))
        for row, entry in zip(labels, entries, strict=True):
            row[entry.tags] = True
        return labels

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        entry = self._index(shard)[index - int(self._ends[number]) + shard.images]
        return self._sample(shard, entry)

    def check_files(self) -> None:
        """Find shards that a disk lacks or holds in part; a store is not asked.

        Raises:
            UserError: There is one.
        """
        for shard in self.shards if "://" not in self._root else ():
            path = Path(self._root, shard.file)
            size = path.stat().st_size if path.is_file() else 0
            if size != shard.bytes:
                raise UserError(f"{path} has {size} bytes, need {shard.bytes}: {_REMEDY}")

    def _index(self, shard: Shard) -> list[Entry]:
        return _read_index(f"{self._root}/{shard.file.removesuffix('.tar')}.json", shard.index_sha256)

    def _sample(self, shard: Shard, entry: Entry) -> Sample:
        url = f"{self._root}/{shard.file}"
        image = read_image(_read_member(url, entry.image), self._upright)
        label = np.zeros(len(self.class_names), np.float32)
        label[entry.tags] = 1
        sample = Sample(image=image, class_label=label, name=entry.name)
        if entry.mask is not None:
            sample["mask"] = read_mask(_read_member(url, entry.mask), image.shape[:2])
        return sample


class WindowOrder:
    """One epoch's order of images, made so that reading stays within a few shards at a time.

    The shards are permuted, cut into windows of some shards each, and the images of a window are permuted;
    each permutation is a pure function of (seed, epoch, window). Every image comes once. Nothing but one
    window's permutation is kept, and any position is found without going through those before it.

    Args:
        counts: Images of each shard.
        window: Shards that are mixed at a time, at least 1.
        seed: Not negative.
        epoch: Not negative.
    """

    def __init__(self, counts: Sequence[int], window: int, seed: int, epoch: int) -> None:
        self._shards = np.random.default_rng((seed, epoch)).permutation(len(counts))
        self._counts, self._starts = np.array(counts), np.cumsum(counts) - counts
        ends = np.cumsum(self._counts[self._shards])
        self._edges = np.concatenate([[0], ends[window - 1 :: window], ends[-1:]])
        self._window, self._key = window, (seed, epoch)
        self._current, self._images = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int, /) -> int:
        number = int(np.searchsorted(self._edges, position, side="right")) - 1
        if number != self._current:
            self._current, self._images = number, self._permute(number)
        return int(self._images[position - self._edges[number]])

    def _permute(self, number: int) -> NDArray[np.int64]:
        shards = self._shards[number * self._window :][: self._window]
        images = [np.arange(self._counts[shard]) + self._starts[shard] for shard in shards]
        # number + 1: a trailing 0 would give the stream of the shards' permutation
        return np.random.default_rng((*self._key, number + 1)).permutation(np.concatenate(images))


def fetch(url: str, start: int | None = None, end: int | None = None, hint: str = _REMEDY) -> bytes:
    """Read bytes ``start`` to ``end``, or all, of a file on a disk or in a store.

    Args:
        url: Path or URL.
        start: Of the first byte.
        end: Behind the last byte.
        hint: What the user should do if there is no such file.

    Raises:
        UserError: The file is missing, cannot be read, or its store needs a package that is not installed.
    """
    for wait in (*RETRY_AFTER, None):
        try:
            system, path = url_to_fs(url)  # kept by fsspec, anew in each process
            return bytes(system.cat_file(path, start, end))
        except FileNotFoundError as error:
            raise UserError(f"{url} is missing: {hint}") from error
        except ImportError as error:
            raise UserError(f"{url} cannot be read ({error}): pip install that package") from error
        except Exception as error:  # stores raise what they like
            if wait is None or isinstance(error, ValueError):
                raise UserError(f"{url} cannot be read ({type(error).__name__}: {error}): {hint}") from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


class _Encoded(io.BytesIO):
    """A member in memory that says in errors where it lies."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(content)
        self._where = where

    def __str__(self) -> str:
        return self._where


def _read_member(url: str, member: Member) -> _Encoded:
    content = fetch(url, member.offset, member.offset + member.size)
    if len(content) > member.size:
        raise UserError(f"{url} came whole, need parts of it: use a server that answers ranges of bytes")
    if len(content) < member.size or zlib.crc32(content) != member.crc32:
        problem = "cut off" if len(content) < member.size else "damaged"
        raise UserError(f"{url} is {problem} at {member.file}: {_REMEDY}")
    return _Encoded(content, f"{url} {member.file}")


@lru_cache(MAX_INDICES)
def _read_index(url: str, sha256: str) -> list[Entry]:
    content = fetch(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{url} is damaged: {_REMEDY}")
    try:
        return [
            Entry(name, tags, Member(*image), mask and Member(*mask))
            for name, tags, image, mask in json.loads(content)
        ]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{url} is no index ({type(error).__name__}: {error}): {_REMEDY}") from error
