"""Data sets in shards: a few large files in place of many small ones, on a disk or in an object store.

A shard is a tar file in the form of WebDataset: members of one sample share their key, images lie there byte
for byte as they were found, masks are PNG, and a JSON gives name and tags. Beside it lies an index with the
place and the checksum of every member, so that each image is one read and the order is free to be a function
of (seed, step). ``manifest.json`` counts and hashes the shards of all splits.
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
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.images import read_image, read_mask
from wsss_afa.data.sampler import DrawSampler
from wsss_afa.errors import UserError, say
from wsss_afa.types import Sample

MANIFEST = "manifest.json"
MAX_INDICES = 32  # of shards, which a process keeps in memory
RETRY_AFTER = (0.5, 2.0)  # seconds
_REMEDY = f"copy it anew (its sha256 is in {MANIFEST}), or set data.skip_broken=true to go on without it"


class Member(NamedTuple):
    """A file of a tar: its name, the place and number of its bytes, and their CRC-32."""

    file: str
    offset: int
    size: int
    crc32: int


Entry = tuple[str, list[int], Member, Member | None]
"""A sample of an index: name, class indices, image and, in splits with masks, a PNG of labels."""


@dataclass(frozen=True)
class Shard:
    """A row of the manifest: a tar file relative to the root; its index has the same name with ``.json``."""

    file: str
    images: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split in the order of their images' indices, and the number of images of each class."""

    has_masks: bool
    tag_counts: dict[str, int]
    shards: list[Shard]

    @property
    def images(self) -> int:
        """Number of images in all shards."""
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """What a folder or URL holds; ``upright`` says that images are turned as their EXIF orientation asks."""

    root: str
    class_names: tuple[str, ...]
    upright: bool
    splits: dict[str, Split]


def read_manifest(root: str) -> Manifest:
    """Read the manifest of a folder or URL; a UserError says that there is none, or that it is damaged."""
    root = root.rstrip("/") if "://" in root else str(Path(root).expanduser())
    url = f"{root}/{MANIFEST}"
    content = fetch(url, hint="set data.root to a folder that `wsss-afa shard` wrote")
    try:
        parsed = json.loads(content)
        splits = {name: _parse_split(**split) for name, split in parsed["splits"].items()}
        return Manifest(root, tuple(parsed["class_names"]), parsed["upright"], splits)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{url} is no manifest of shards ({error!r}): copy it anew") from error


class ShardSet:
    """The samples of one split, each read where it lies.

    With ``check``, a disk is asked at once for all shards; a store never is. A UserError says that there is
    no such split, or that a shard is missing or damaged.
    """

    def __init__(self, manifest: Manifest, split: str, check: bool = False) -> None:
        if split not in manifest.splits:
            problem = f"{manifest.root} has the splits {', '.join(manifest.splits)}, need {split!r}"
            raise UserError(f"{problem}: write it, or set trainer.limit_val_batches=0 to do without")
        self.class_names, self.shards = manifest.class_names, manifest.splits[split].shards
        self._root, self._upright = manifest.root, manifest.upright
        self._ends = np.cumsum([shard.images for shard in self.shards])
        for shard in self.shards if check and "://" not in self._root else ():
            path = Path(self._root, shard.file)
            size = path.stat().st_size if path.is_file() else 0
            if size != shard.bytes:
                raise UserError(f"{path} has {size} bytes, need {shard.bytes}: {_REMEDY}")

    @property
    def names(self) -> list[str]:
        """The images' names, in order; every index is read to know them."""
        return [name for shard in self.shards for name, _, _, _ in self._index(shard)]

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """Tags of all images, (n, C); every index is read once to know them."""
        return np.stack([self._label(tags) for shard in self.shards for _, tags, _, _ in self._index(shard)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        name, tags, image, mask = self._index(shard)[index - int(self._ends[number]) + shard.images]
        url, label = f"{self._root}/{shard.file}", self._label(tags).astype(np.float32)
        pixels = read_image(_read_member(url, image), self._upright)
        sample = Sample(image=pixels, class_label=label, name=name)
        if mask is not None:
            sample["mask"] = read_mask(_read_member(url, mask), pixels.shape[:2])
        return sample

    def _label(self, tags: list[int]) -> NDArray[np.bool_]:
        return np.isin(np.arange(len(self.class_names)), tags)

    def _index(self, shard: Shard) -> list[Entry]:
        return _read_index(f"{self._root}/{shard.file.removesuffix('.tar')}.json", shard.index_sha256)


class WindowOrder:
    """One epoch's order of images in which reading stays within a few shards at a time.

    The shards are permuted and cut into windows of so many, and the images of each window are permuted. Each
    permutation is a pure function of (seed, epoch, window), and any position is found without those before
    it. ``counts`` has the number of images of each shard.
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
    """Read a file, or its bytes from ``start`` to before ``end``, and try again if a store fails.

    A UserError, which ends with the hint, says that the file is missing or cannot be read.
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
    """The bytes of a member, which errors call by the place that they come from."""

    def __init__(self, content: bytes, where: str) -> None:
        super().__init__(content)
        self._where = where

    def __str__(self) -> str:
        return self._where


def _read_member(url: str, member: Member) -> _Encoded:
    content = fetch(url, member.offset, member.offset + member.size)
    if len(content) > member.size:
        raise UserError(f"{url} came whole, need parts of it: use a server that answers ranges of bytes")
    if zlib.crc32(content) != member.crc32:
        raise UserError(f"{url} is damaged at {member.file}: {_REMEDY}")
    return _Encoded(content, f"{url} {member.file}")


@lru_cache(MAX_INDICES)
def _read_index(url: str, sha256: str) -> list[Entry]:
    content = fetch(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{url} is damaged: {_REMEDY}")
    try:
        rows = json.loads(content)
        return [(name, tags, Member(*image), mask and Member(*mask)) for name, tags, image, mask in rows]
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{url} is no index ({error!r}): {_REMEDY}") from error


def _parse_split(has_masks: bool, tag_counts: dict[str, int], shards: list[dict[str, Any]]) -> Split:
    split = Split(has_masks, tag_counts, [Shard(**row) for row in shards])
    for shard in split.shards:
        if not re.fullmatch(r"([\w-][\w. -]*/)*\w[\w. -]*\.tar", shard.file):
            raise ValueError(f"the file {shard.file!r}, need a tar below the root")
        if not 0 <= shard.images <= shard.bytes // tarfile.BLOCKSIZE:
            raise ValueError(f"{shard.images} images in {shard.bytes} bytes of {shard.file}")
    return split


@dataclass(eq=False, repr=False)
class StreamingDataModule(TaggedDataModule):
    """Shards written by ``wsss-afa shard``.

    Images are drawn from a window of shards, each once an epoch. There is no ``balanced``: drawing rare
    classes more often would need all tags in memory. The other settings are those of ``TaggedDataModule``.

    Args:
        root: Folder or URL with the manifest; of URLs fsspec knows http, s3, gs and others.
        window: Shards that are mixed at a time: more mix better and touch more files.

    Raises:
        UserError: A value is out of its range, or there is no manifest; from ``setup``, a split or, on a
            disk, a shard is missing.
    """

    root: str
    window: int = 8
    balanced: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UserError(f"data.window is {self.window}, need at least 1 shard: try 8")
        self._manifest = read_manifest(self.root)
        self.class_names = self._manifest.class_names
        self.has_masks = "val" in self._manifest.splits and self._manifest.splits["val"].has_masks

    def prepare_data(self) -> None:
        """Say what was found."""
        root, splits = self._manifest.root, self._manifest.splits
        found = [f"{own.images} {name} in {len(own.shards)} shards" for name, own in splits.items()]
        say("data", f"{root}: {'; '.join(found)}; {self.num_classes} classes")

    def make_set(self, split: str) -> ShardSet:
        """The images of a split with their tags and, if it has any, masks."""
        return ShardSet(self._manifest, split, check=not self.skip_broken)

    def _sampler(self, length: int) -> DrawSampler:
        sampler = super()._sampler(length)
        counts = [shard.images for shard in self._manifest.splits["train"].shards]
        sampler.order = partial(WindowOrder, counts, self.window, self.seed)
        return sampler
