"""From official archives to a folder that trains: ``python -m wsss_afa.prepare dataset=voc2012 root=…``.

Archives are downloaded, or taken from ``archives=DIR``, and checked; they are unpacked beside the root, which
appears at once; every split is opened and counted, and masks are read. What was found goes to
``manifest.json``, last of all: a folder that has one is done.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, track
from torch.utils.data import DataLoader, Dataset

from wsss_afa import __version__
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.archive import unpack
from wsss_afa.data.coco import read_category_ids
from wsss_afa.data.download import Source, download, require_space, verify
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.shard import pack

MANIFEST = "manifest.json"
"""In the root: the archives with their hashes, and the counts of what they hold."""
_BATCH = 16
"""Samples that are read between two steps of a progress bar."""


def read_manifest(root: Path, dataset: str) -> dict[str, Any] | None:
    """The record of a finished preparation, None where there is none.

    Raises:
        UserError: It is of another data set, cannot be read, or images have gone since.
    """
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
        raise UserError(
            f"root={root} has {found} images, its {MANIFEST} says {images}: delete the folder and run again"
        )
    return manifest


def list_sources(cfg: DictConfig) -> list[Source]:
    """The archives of a data set, with their addresses on the mirror where there is one."""
    official = [Source(**file) for file in cfg.dataset.files.values()]
    if cfg.base_url is None:
        return official
    return [source._replace(url=f"{cfg.base_url.rstrip('/')}/{source.name}") for source in official]


def fetch(cfg: DictConfig, sources: list[Source], folder: Path) -> None:
    """Download what the folder lacks, and check all of it.

    Raises:
        UserError: A download fails, or the disk holds neither the archives nor, then, what is in them.
    """
    left = sum(_bytes_left(source, folder / source.name) for source in sources)
    require_space(folder, left + sum(source.size for source in sources))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        tasks = [bar.add_task(source.name, total=source.size) for source in sources]
        for source, task in zip(sources, tasks, strict=True):
            tell = partial(_tell, bar, task)
            download(source, folder / source.name, cfg.attempts, cfg.wait, cfg.timeout, tell)
            tell(source.size)


def _tell(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def find(sources: list[Source], folder: Path) -> None:
    """Check archives that are there already; nothing is downloaded.

    Raises:
        UserError: One is missing or another file.
    """
    absent = [source for source in sources if not (folder / source.name).is_file()]
    if absent:
        raise UserError(
            f"archives={folder} lacks {', '.join(source.name for source in absent)}: copy it from "
            f"{absent[0].url}, or leave archives out to download"
        )
    for source in sources:
        verify(folder / source.name, source)


def survey(cfg: DictConfig, root: Path) -> dict[str, dict[str, Any]]:
    """Open and count every split, and read those with masks.

    Returns:
        By split, the number of images and of masks, and the images of each class.

    Raises:
        UserError: A file is missing or broken, or there are more or fewer images than there should be.
    """
    _require_count(root, "images", _count_images(root), cfg.dataset.images)
    found = {}
    for split, images in cfg.dataset.splits.items():
        with_mask = split in cfg.dataset.masks
        samples = instantiate(cfg.dataset.reader, root=str(root), split=split, with_mask=with_mask)
        _require_count(root, f"images in {split}", len(samples), images)
        if with_mask:
            _read_all(samples, cfg.num_workers, f"{split}, with masks")
        tags = dict(zip(samples.class_names, samples.labels.sum(0).tolist(), strict=True))
        found[split] = {"images": images, "masks": images if with_mask else 0, "tags": tags}
    return found


def _count_images(root: Path) -> int:
    """Photographs below a folder, those without annotations included."""
    return sum(name.endswith(".jpg") for _, _, names in os.walk(root) for name in names)


def _read_all(samples: Dataset[Any], num_workers: int, description: str) -> None:
    """Read every sample, which proves each image and mask and draws the masks that are drawn."""
    workers = min(num_workers, os.cpu_count() or 1)
    for _ in track(DataLoader(samples, _BATCH, num_workers=workers, collate_fn=len), description):
        pass  # a worker hands over the number of samples alone


def make_manifest(cfg: DictConfig, root: Path, sources: list[Source]) -> dict[str, Any]:
    """What ``manifest.json`` says; of COCO's classes, the category ids as well."""
    splits = survey(cfg, root)
    names = list(next(iter(splits.values()))["tags"])
    ids = read_category_ids(root / cfg.dataset.categories) if cfg.dataset.categories else {}
    classes = [
        {"name": name, "mask_value": value} | ({"category_id": ids[name]} if ids else {})
        for value, name in enumerate(names, 1)
    ]
    return {
        "dataset": cfg.dataset.name,
        "library": f"wsss-afa {__version__}",
        "archives": {
            source.name: {"url": source.url, "bytes": source.size, "checksum": source.checksum}
            for source in sources
        },
        "images": cfg.dataset.images,
        "splits": splits,
        "classes": classes,
    }


def report(cfg: DictConfig, root: Path, manifest: dict[str, Any]) -> None:
    """Print what there is and the command that trains on it."""
    if cfg.dataset.categories:
        print("mask value → category id of 1 to 90:")
        cells = [f"{c['mask_value']:>2} → {c['category_id']:>2} {c['name']:<15}" for c in manifest["classes"]]
        print("\n".join("  ".join(cells[start : start + 4]).rstrip() for start in range(0, len(cells), 4)))
    for name, split in manifest["splits"].items():
        print(
            f"{name:<10} {split['images']} images, {split['masks']} masks, {sum(split['tags'].values())} tags"
        )
    print(f"manifest   {root / MANIFEST}")
    print(f"train      python -m wsss_afa.train +experiment={cfg.dataset.experiment} data.root={root}")


def make(cfg: DictConfig, root: Path) -> dict[str, Any]:
    """Fetch, unpack, survey and record; return the manifest."""
    sources, folder = list_sources(cfg), root.with_name(f"{root.name}_archives")
    if cfg.archives is None:
        fetch(cfg, sources, folder)
    else:
        folder = Path(cfg.archives).expanduser()
        find(sources, folder)
    with Progress() as bar:
        unpack([folder / source.name for source in sources], root, cfg.dataset.folder, bar.track)
    manifest, path = make_manifest(cfg, root, sources), root / MANIFEST
    try:
        write_whole(path, json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): free the disk or choose another") from error
    report(cfg, root, manifest)
    if cfg.archives is None:
        print(f"archives   {folder}; they are needed no more")
    return manifest


def make_shards(cfg: DictConfig, root: Path) -> None:
    """Write the prepared data set as shards beside its root, unless they are there."""
    out = root.with_name(f"{root.name}_shards")
    if (out / MANIFEST).exists():
        print(f"{out} holds shards: nothing to do")
        return
    data = instantiate(cfg.dataset.data, root=str(root), num_workers=cfg.num_workers)
    pack(data, out, cfg.shards, ["train", "val"])


@entry_point("prepare")
def main(cfg: DictConfig) -> float:
    """Prepare a data set and return the number of its images."""
    name, root = cfg.dataset.name, Path(cfg.root).expanduser()
    manifest = read_manifest(root, name)
    if manifest is None:
        manifest = make(cfg, root)
    else:
        print(f"{root} holds {name}, {manifest['images']} images: nothing to do")
    if cfg.shards is not None:
        make_shards(cfg, root)
    return float(manifest["images"])


def _bytes_left(source: Source, path: Path) -> int:
    there = next((p.stat().st_size for p in (path, path.with_name(f"{path.name}.partial")) if p.exists()), 0)
    return max(source.size - there, 0)


def _require_count(root: Path, what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(f"{root} has {found} {what}, need {wanted}: delete the folder and run again")


if __name__ == "__main__":
    main()
