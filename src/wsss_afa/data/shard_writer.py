"""Write data sets as shards; ``shards.py`` has their form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from wsss_afa.data.folder.content import TaggedFolder
from wsss_afa.data.sampler import SampleSet
from wsss_afa.data.shards import MANIFEST, Entry, Manifest, Member, Shard, Split
from wsss_afa.types import Sample
from wsss_afa.errors import UserError


class Written(NamedTuple):
    """One shard on the disk."""

    shard: Shard
    """Its row of the manifest."""
    has_masks: bool
    """Whether its samples carry the mask."""
    tag_counts: list[int]
    """Images of each class."""
    broken: list[str]
    """Messages of the images left out."""


class ShardFiles(Dataset[Written]):
    """Shards of one split; item i writes shard i and its index, so that loader processes write in parallel.

    Every image is decoded once, which finds those that training could not read.

    Args:
        dataset: What to write.
        folder: Where to, an existing folder.
        split: Name of its folder there.
        size: Images of a shard; the last may have fewer.
        skip_broken: Whether images that cannot be read are left out instead of refused.
    """

    def __init__(
        self, dataset: SampleSet, folder: Path, split: str, size: int, skip_broken: bool = False
    ) -> None:
        self._dataset, self._folder, self._split, self._size = dataset, folder, split, size
        self._skip_broken = skip_broken
        self._paths: list[Path] | None = getattr(dataset, "paths", None)
        self._order = _spread(len(dataset)) if split == "train" else np.arange(len(dataset))
        (folder / split).mkdir()

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    def __getitem__(self, number: int) -> Written:
        file = f"{self._split}/{number:05d}.tar"
        path = self._folder / file
        counts = np.zeros(len(self._dataset.class_names), int)
        entries, broken = list[Entry](), list[str]()
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in self._order[number * self._size :][: self._size]:
                try:
                    sample = self._dataset[int(image)]
                except UserError as error:
                    if not self._skip_broken:
                        raise
                    broken.append(str(error))
                    continue
                entries.append(self._add(tar, int(image), sample))
                counts += sample["class_label"].astype(bool)
        index = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        path.with_suffix(".json").write_bytes(index)
        hashes = _sha256(path), hashlib.sha256(index).hexdigest()
        shard = Shard(file, len(entries), path.stat().st_size, *hashes)
        return Written(shard, any(entry.mask for entry in entries), counts.tolist(), broken)

    def _add(self, tar: tarfile.TarFile, image: int, sample: Sample) -> Entry:
        """Members share a key without dots, for readers of WebDataset cut names at the first."""
        key, tags = f"{image:012d}", np.flatnonzero(sample["class_label"]).tolist()
        names = [self._dataset.class_names[tag] for tag in tags]
        member = _add_member(tar, key, *self._encoded(image, sample))
        mask = _add_member(tar, key, "mask.png", _png(sample["mask"])) if "mask" in sample else None
        about = json.dumps({"name": sample["name"], "tags": names}, ensure_ascii=False)
        _add_member(tar, key, "json", about.encode())
        return Entry(sample["name"], tags, member, mask)

    def _encoded(self, image: int, sample: Sample) -> tuple[str, bytes]:
        """Ending and content of the image file; an image without a file becomes a PNG."""
        if self._paths is None:
            return "png", _png(sample["image"])
        path = self._paths[image]
        return path.suffix[1:].lower(), path.read_bytes()


def write_shards(
    datasets: Mapping[str, SampleSet],
    out: Path,
    shards: int,
    num_workers: int = 0,
    skip_broken: bool = False,
    on_shard: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> tuple[Manifest, list[str]]:
    """Write splits as shards of equal numbers of images, all of them or nothing.

    The training images are spread over the shards at random, always in the same way, so that each shard is a
    fair sample of them; others keep their order.

    Args:
        datasets: By split; the first one settles the size of a shard.
        out: A new folder.
        shards: Of the first split.
        num_workers: Processes that write; 0 writes in this one.
        skip_broken: Whether images that cannot be read are left out instead of refused.
        on_shard: Called after each shard with its split, how many are done, and of how many.

    Returns:
        The manifest, and the messages of the images left out.

    Raises:
        UserError: The folder is there already or cannot be written, an image cannot be read, or there are
            more shards than images.
    """
    first = next(iter(datasets.values()))
    if not 1 <= shards <= len(first):
        raise UserError(f"shards={shards}, need 1 to {len(first)}, the number of images: change it")
    size, splits, broken = -(-len(first) // shards), dict[str, Split](), list[str]()
    with _new_folder(out) as folder:
        for name, dataset in datasets.items():
            assert dataset.class_names == first.class_names, "splits share their classes"
            files = ShardFiles(dataset, folder, name, size, skip_broken)
            written = list[Written]()
            for part in DataLoader(files, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is):
                written.append(part)
                broken += part.broken
                on_shard(name, len(written), len(files))
            splits[name] = _summarise(dataset.class_names, written)
        manifest = Manifest(str(out), first.class_names, isinstance(first, TaggedFolder), splits)
        (folder / MANIFEST).write_text(_dump(manifest), encoding="utf-8")
    return manifest, broken


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name once it is whole, and goes if it never is."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"out={out} is there already, need a new folder: delete it or name another")
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): free space, or name another") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _summarise(class_names: tuple[str, ...], written: list[Written]) -> Split:
    filled = [part for part in written if part.shard.images]
    if not filled:
        raise UserError(f"no image of a split can be read, the first as {written[0].broken[0]}")
    counts = np.sum([part.tag_counts for part in filled], axis=0).tolist()
    shards = [part.shard for part in filled]
    return Split(filled[0].has_masks, dict(zip(class_names, counts, strict=True)), shards)


def _dump(manifest: Manifest) -> str:
    splits = {
        name: split._asdict() | {"shards": [shard._asdict() for shard in split.shards]}
        for name, split in manifest.splits.items()
    }
    content = {"class_names": manifest.class_names, "upright": manifest.upright, "splits": splits}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _spread(length: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(length)


def _add_member(tar: tarfile.TarFile, key: str, ending: str, content: bytes) -> Member:
    info = tarfile.TarInfo(f"{key}.{ending}")
    info.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # behind the header
    tar.addfile(info, io.BytesIO(content))
    return Member(info.name, offset, info.size, zlib.crc32(content))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_it_is(item: Any) -> Any:
    return item
