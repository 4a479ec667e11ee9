"""Write data sets as shards; ``shards.py`` describes their form."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.progress import track
from torch.utils.data import DataLoader

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.folder.content import TaggedFolder
from wsss_afa.data.images import encode_png
from wsss_afa.data.sampler import SampleSet, say_skipped
from wsss_afa.data.shards import MANIFEST, Entry, Manifest, Member, Shard, Split
from wsss_afa.errors import UserError, say
from wsss_afa.files import write_whole
from wsss_afa.types import Sample


def pack(data: TaggedDataModule, out: Path, shards: int, splits: list[str]) -> int:
    """Write train, val or both of a data module's splits, say what is in them, and return how many images.

    A UserError says that a split is not known, files are missing, or the folder cannot take the shards.
    """
    if not splits or set(splits) - {"train", "val"}:
        raise UserError(f"splits={splits}, need train, val or both: set splits=[train,val], for example")
    sets = {name: data.make_set(name) for name in splits}
    manifest, broken = write_shards(sets, out, shards, data.num_workers, data.skip_broken, bar=True)
    say_skipped(broken)
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        say(name, f"{split.images} images in {len(split.shards)} shards, {size:.1f} MB")
    say("written", f"{out}; train with data=streaming data.root={out}")
    return sum(split.images for split in manifest.splits.values())


def write_shards(
    datasets: Mapping[str, SampleSet], out: Path, shards: int,
    num_workers: int = 0, skip_broken: bool = False, bar: bool = False,
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Write splits as shards of equal numbers of images, all of them or nothing.

    The training images are spread over the shards at random, always in the same way, so that each shard is a
    fair sample of them; others keep their order. Every image is decoded once, which finds broken ones.

    ``shards`` is their number in the first split and settles the number of images in every shard; with 0
    workers this process writes. ``skip_broken`` leaves out images that cannot be read; their messages are
    returned beside the manifest. A UserError says that ``out``, a new folder, cannot be made, that an image
    cannot be read, or that there are more shards than images.
    """
    first = next(iter(datasets.values()))
    assert all(each.class_names == first.class_names for each in datasets.values()), "splits share classes"
    if not 1 <= shards <= len(first):
        raise UserError(f"shards={shards}, need 1 to {len(first)}, the number of images: change it")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"out={out} is there already, need a new folder: delete it or name another")
    staging = out.with_name(f".{out.name}.{os.getpid()}")  # takes its name once it is whole
    size = -(-len(first) // shards)
    splits, broken = dict[str, Split](), list[str]()
    try:
        for name, dataset in datasets.items():
            (staging / name).mkdir(parents=True)
            images = np.arange(len(dataset))
            order = np.random.default_rng(0).permutation(images) if name == "train" else images
            starts = range(0, len(order), size)
            jobs = [(f"{name}/{k:05d}.tar", order[n : n + size].tolist()) for k, n in enumerate(starts)]
            write = partial(_write_shard, dataset, getattr(dataset, "paths", None), staging, skip_broken)
            loader = DataLoader(cast(Any, jobs), batch_size=None, num_workers=num_workers, collate_fn=write)
            parts = list(track(loader, name, transient=True, disable=not bar))
            broken += [message for _, messages in parts for message in messages]
            splits[name] = _join([part for part, _ in parts], broken)
        manifest = Manifest(str(out), first.class_names, isinstance(first, TaggedFolder), splits)
        content = {key: value for key, value in asdict(manifest).items() if key != "root"}
        write_whole(staging / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        staging.replace(out)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): free space, or name another") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest, broken


def _write_shard(
    dataset: SampleSet, paths: list[Path] | None, root: Path, skip_broken: bool, job: tuple[str, list[int]]
) -> tuple[Split, list[str]]:
    file, images = job
    path, entries, broken = root / file, list[Entry](), list[str]()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            try:
                entries.append(_add_sample(tar, image, dataset[image], paths, dataset.class_names))
            except UserError as error:
                if not skip_broken:
                    raise
                broken.append(str(error))
    index = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    path.with_suffix(".json").write_bytes(index)
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    shard = Shard(file, len(entries), path.stat().st_size, sha256, hashlib.sha256(index).hexdigest())
    counts = Counter(tag for _, tags, _, _ in entries for tag in tags)
    tag_counts = {name: counts[tag] for tag, name in enumerate(dataset.class_names)}
    return Split(any(mask for *_, mask in entries), tag_counts, [shard]), broken


def _join(parts: list[Split], broken: list[str]) -> Split:
    shards = [shard for part in parts for shard in part.shards if shard.images]
    if not shards:
        raise UserError(f"no image of a split can be read, the first as {broken[0]}")
    counts = {name: sum(part.tag_counts[name] for part in parts) for name in parts[0].tag_counts}
    return Split(any(part.has_masks for part in parts), counts, shards)


def _add_sample(
    tar: tarfile.TarFile, image: int, sample: Sample, paths: list[Path] | None, class_names: tuple[str, ...]
) -> Entry:
    # no dots in the key of members, for readers of WebDataset cut names at the first
    key, tags = f"{image:012d}", np.flatnonzero(sample["class_label"]).tolist()
    if paths is None:
        member = _add(tar, f"{key}.png", encode_png(sample["image"]))
    else:
        member = _add(tar, key + paths[image].suffix.lower(), paths[image].read_bytes())
    mask = _add(tar, f"{key}.mask.png", encode_png(sample["mask"])) if "mask" in sample else None
    about = {"name": sample["name"], "tags": [class_names[tag] for tag in tags]}
    _add(tar, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
    return sample["name"], tags, member, mask


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # behind the header
    tar.addfile(info, io.BytesIO(content))
    return Member(name, offset, info.size, zlib.crc32(content))
