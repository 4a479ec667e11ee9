"""From official archives to a folder that trains: fetching or finding them, counting what they hold.

Archives are unpacked beside the root, which appears at once. ``manifest.json`` is written last of all: a
folder that has one is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, track
from torch.utils.data import DataLoader

from wsss_afa import __version__
from wsss_afa.data.coco import read_category_ids
from wsss_afa.data.download import Source, download, partial_path, require_space, verify
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole

MANIFEST = "manifest.json"  # in the root: the archives with their hashes, and the counts of what they hold
_BATCH = 16  # samples that are read between two steps of a progress bar


def read_manifest(root: Path, dataset: str) -> dict[str, Any] | None:
    """The record of a finished preparation, if any; a UserError says that it does not fit what is there."""
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        made, images = manifest["dataset"], manifest["images"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest ({error!r}): delete it and run again") from error
    if made != dataset:
        raise UserError(f"root={root} holds {made}, need a folder for {dataset}: set root to another")
    found = _count_images(root)
    if found != images:
        counts = f"{found} images, its {MANIFEST} says {images}"
        raise UserError(f"root={root} has {counts}: delete the folder and run again")
    return manifest


def fetch(sources: list[Source], folder: Path, attempts: int, wait: float, timeout: float) -> None:
    """Download what a folder lacks, and check all of it; ``download`` explains the last three numbers.

    A UserError says that one fails, or that the disk holds neither the archives nor, then, what is in them.
    """
    paths = [folder / source.name for source in sources]
    there = [each.stat().st_size for path in paths for each in (path, partial_path(path)) if each.exists()]
    require_space(folder, 2 * sum(source.size for source in sources) - sum(there))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        tasks = [bar.add_task(source.name, total=source.size) for source in sources]
        for source, path, task in zip(sources, paths, tasks, strict=True):
            download(source, path, attempts, wait, timeout, partial(_show, bar, task))
            _show(bar, task, source.size)


def find(sources: list[Source], folder: Path) -> None:
    """Check archives that are there already; a UserError says that one is missing or another file."""
    for source in sources:
        if not (folder / source.name).is_file():
            raise UserError(f"archives={folder} lacks {source.name}: copy it from {source.url}")
        verify(folder / source.name, source)


def survey(
    dataset: DictConfig, root: Path, reader: Callable[..., Any], num_workers: int
) -> dict[str, dict[str, Any]]:
    """Open and count every split, and read those with masks, which draws the masks that are drawn.

    ``dataset`` is a file of ``conf/dataset``; ``reader`` opens a split of the unpacked folder by its keywords
    ``split`` and ``with_mask``. Reading takes no more processes than there are cores.
    Return, by split, the number of images and of masks, and the images of each class. A UserError says that a
    file is missing or broken, or that there are more or fewer images than there should be.
    """
    _require_count(root, "images", _count_images(root), dataset.images)
    found, workers = {}, min(num_workers, os.cpu_count() or 1)
    for split, images in dataset.splits.items():
        with_mask = split in dataset.masks
        samples = reader(split=split, with_mask=with_mask)
        _require_count(root, f"images in {split}", len(samples), images)
        if with_mask:
            loader = DataLoader(samples, _BATCH, num_workers=workers, collate_fn=len)
            for _ in track(loader, f"{split}, with masks"):
                pass  # a worker hands over the number of samples alone
        tags = dict(zip(samples.class_names, samples.labels.sum(0).tolist(), strict=True))
        found[split] = {"images": images, "masks": images if with_mask else 0, "tags": tags}
    return found


def write_manifest(
    dataset: DictConfig, root: Path, sources: list[Source], splits: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write ``manifest.json`` and return what it says, category ids of COCO's classes included."""
    ids = read_category_ids(root / dataset.categories) if dataset.categories else {}
    manifest = {
        "dataset": dataset.name,
        "library": f"wsss-afa {__version__}",
        "archives": {s.name: {"url": s.url, "bytes": s.size, "checksum": s.checksum} for s in sources},
        "images": dataset.images,
        "splits": splits,
        "classes": [
            {"name": name, "mask_value": value} | ({"category_id": ids[name]} if ids else {})
            for value, name in enumerate(next(iter(splits.values()))["tags"], 1)
        ],
    }
    path = root / MANIFEST
    try:
        write_whole(path, json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): free the disk or choose another") from error
    return manifest


def _count_images(root: Path) -> int:
    return sum(1 for _ in root.rglob("*.jpg"))


def _show(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def _require_count(root: Path, what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(f"{root} has {found} {what}, need {wanted}: delete the folder and run again")
