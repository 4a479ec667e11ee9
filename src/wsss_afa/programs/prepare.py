"""From official archives to a folder that trains: ``wsss-afa prepare dataset=voc2012 root=…``.

Archives are downloaded, or taken from ``archives=DIR``, and checked; they are unpacked beside the root, which
appears at once; every split is opened and counted, and masks are read. What was found goes to
``manifest.json``, last of all: a folder that has one is done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import Progress

from wsss_afa.cli.run_folder import hold
from wsss_afa.data.archive import unpack
from wsss_afa.data.download import Source
from wsss_afa.data.official import MANIFEST, fetch, find, read_manifest, survey, write_manifest


def make(cfg: DictConfig, root: Path) -> dict[str, Any]:
    """Fetch, unpack, survey and record; return the manifest."""
    sources = [Source(**file) for file in cfg.dataset.files.values()]
    if cfg.base_url is not None:
        sources = [each._replace(url=f"{cfg.base_url.rstrip('/')}/{each.name}") for each in sources]
    if cfg.archives is None:
        folder = root.with_name(f"{root.name}_archives")
        fetch(sources, folder, cfg.attempts, cfg.wait, cfg.timeout)
    else:
        folder = Path(cfg.archives).expanduser()
        find(sources, folder)
    with Progress() as bar:
        unpack([folder / source.name for source in sources], root, cfg.dataset.folder, bar.track)
    reader = instantiate(cfg.dataset.reader, _partial_=True, root=str(root))
    splits = survey(cfg.dataset, root, reader, cfg.num_workers)
    manifest = write_manifest(cfg.dataset, root, sources, splits)
    report(cfg, root, manifest)
    if cfg.archives is None:
        print(f"archives   {folder}; they are needed no more")
    return manifest


def alone(cfg: DictConfig, root: Path) -> dict[str, Any]:
    """Make it while no other process does; a second one is told who is there."""
    lock = root.with_name(f".{root.name}.lock")
    hold(root, lock, "root")
    try:
        return make(cfg, root)
    finally:
        lock.unlink(missing_ok=True)


def report(cfg: DictConfig, root: Path, manifest: dict[str, Any]) -> None:
    """Print what there is and the command that trains on it."""
    if cfg.dataset.categories:
        print("mask value → category id of 1 to 90:")
        cells = [f"{c['mask_value']:>2} → {c['category_id']:>2} {c['name']:<15}" for c in manifest["classes"]]
        print("\n".join("  ".join(cells[start : start + 4]).rstrip() for start in range(0, len(cells), 4)))
    for name, split in manifest["splits"].items():
        tags = sum(split["tags"].values())
        print(f"{name:<10} {split['images']} images, {split['masks']} masks, {tags} tags")
    print(f"manifest   {root / MANIFEST}")
    print(f"train      wsss-afa train +experiment={cfg.dataset.experiment} data.root={root}")


def run(cfg: DictConfig) -> float:
    """Prepare a data set and return the number of its images."""
    name, root = cfg.dataset.name, Path(cfg.root).expanduser()
    manifest = read_manifest(root, name)
    if manifest is None:
        manifest = alone(cfg, root)
    else:
        print(f"{root} holds {name}, {manifest['images']} images: nothing to do")
    return float(manifest["images"])
