"""Write data sets as shards; ``shards.py`` describes their form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from wsss_afa.data.folder.content import TaggedFolder
from wsss_afa.data.sampler import SampleSet
from wsss_afa.data.shards import MANIFEST, Entry, Manifest, Member, Shard, Split
from wsss_afa.errors import UserError
from wsss_afa.types import Sample

Parts = Iterable[tuple[Split, list[str]]]
"""Splits of one shard each, as they are written, and the messages of images left out."""


def write_shards(
    datasets: Mapping[str, SampleSet],
    out: Path,
    shards: int,
    num_workers: int = 0,
    skip_broken: bool = False,
    track: Callable[[Parts, str], Parts] = lambda parts, name: parts,
) -> tuple[Manifest, list[str]]:
    """Write splits as shards of equal numbers of images, all of them or nothing.

    The training images are spread over the shards at random, always in the same way, so that each shard is a
    fair sample of them; others keep their order. Every image is decoded once, which finds broken ones.

    Args:
        datasets: By split.
        out: A new folder.
        shards: Number of shards of the first split; it settles the number of images in every shard.
        num_workers: Processes that write; 0 writes in this one.
        skip_broken: Whether images that cannot be read are left out instead of refused.
        track: Gets the shards of a split and its name, and shows how many of them are written.

    Returns:
        The manifest, and the messages of the images left out.

    Raises:
        UserError: The folder cannot be made, an image cannot be read, or there are more shards than images.
    """
    first = next(iter(datasets.values()))
    if not 1 <= shards <= len(first):
        raise UserError(f"shards={shards}, need 1 to {len(first)}, the number of images: change it")
    splits, broken = dict[str, Split](), list[str]()
    with _new_folder(out) as folder:
        for name, dataset in datasets.items():
            assert dataset.class_names == first.class_names, "splits share their classes"
            files = _ShardFiles(dataset, folder, name, -(-len(first) // shards), skip_broken)
            parts = list(track(DataLoader(files, batch_size=None, num_workers=num_workers), name))
            broken += [message for _, messages in parts for message in messages]
            splits[name] = _join([split for split, _ in parts], broken)
        manifest = Manifest(str(out), first.class_names, isinstance(first, TaggedFolder), splits)
        content = asdict(manifest)
        del content["root"]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest, broken


class _ShardFiles(Dataset[tuple[Split, list[str]]]):
    """Item i writes shard i and its index, so that loader processes write in parallel."""

    def __init__(self, dataset: SampleSet, folder: Path, split: str, size: int, skip_broken: bool) -> None:
        self._dataset, self._folder, self._split, self._size = dataset, folder, split, size
        self._skip_broken = skip_broken
        self._paths: list[Path] | None = getattr(dataset, "paths", None)
        images = np.arange(len(dataset))
        self._order = np.random.default_rng(0).permutation(images) if split == "train" else images
        (folder / split).mkdir()

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    def __getitem__(self, number: int) -> tuple[Split, list[str]]:
        file = f"{self._split}/{number:05d}.tar"
        path, entries, broken = self._folder / file, list[Entry](), list[str]()
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in self._order[number * self._size :][: self._size].tolist():
                try:
                    entries.append(self._add(tar, image, self._dataset[image]))
                except UserError as error:
                    if not self._skip_broken:
                        raise
                    broken.append(str(error))
        index = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        path.with_suffix(".json").write_bytes(index)
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        shard = Shard(file, len(entries), path.stat().st_size, sha256, hashlib.sha256(index).hexdigest())
        tags = [tag for _, tags, _, _ in entries for tag in tags]
        counts = {name: tags.count(tag) for tag, name in enumerate(self._dataset.class_names)}
        return Split(any(mask for *_, mask in entries), counts, [shard]), broken

    def _add(self, tar: tarfile.TarFile, image: int, sample: Sample) -> Entry:
        """Members share a key without dots, for readers of WebDataset cut names at the first."""
        key, tags = f"{image:012d}", np.flatnonzero(sample["class_label"]).tolist()
        if self._paths is None:
            ending, content = ".png", _png(sample["image"])
        else:
            ending, content = self._paths[image].suffix.lower(), self._paths[image].read_bytes()
        member = _add_member(tar, key + ending, content)
        mask = _add_member(tar, f"{key}.mask.png", _png(sample["mask"])) if "mask" in sample else None
        about = {"name": sample["name"], "tags": [self._dataset.class_names[tag] for tag in tags]}
        _add_member(tar, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
        return sample["name"], tags, member, mask


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


def _join(parts: list[Split], broken: list[str]) -> Split:
    shards = [shard for part in parts for shard in part.shards if shard.images]
    if not shards:
        raise UserError(f"no image of a split can be read, the first as {broken[0]}")
    counts = {name: sum(part.tag_counts[name] for part in parts) for name in parts[0].tag_counts}
    return Split(any(part.has_masks for part in parts), counts, shards)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # behind the header
    tar.addfile(info, io.BytesIO(content))
    return Member(name, offset, info.size, zlib.crc32(content))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
