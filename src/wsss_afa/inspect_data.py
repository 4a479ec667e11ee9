"""Look through a data set before training: ``python -m wsss_afa.inspect_data data=folder data.root=…``.

Says what was found and how it was read, lists what is wrong with it, and leaves ``report.json`` and
``contact_sheet.png`` in the run's folder. Ends with exit code 1 if there are errors; warnings do not count.
"""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.images import shrink
from wsss_afa.data.inspection import Finding, Look, Split, choose, describe, find_problems, look_at_all
from wsss_afa.data.sampler import SampleSet
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.visualize import contact_sheet, paint_label, save_figure

MAX_ROWS = 30
"""Classes in the printed table."""
_THUMBNAIL = 170
"""Longer side of a picture on the contact sheet in pixels."""


def open_sets(cfg: DictConfig) -> tuple[dict[str, SampleSet], list[Finding]]:
    """The splits that can be read, and what keeps the others from it."""
    try:
        as_stored = {"max_side": None} if "max_side" in cfg.data else {}
        data: TaggedDataModule = instantiate(cfg.data, **as_stored)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            return {}, _layout(error.__cause__)
        raise
    sets: dict[str, SampleSet] = {}
    findings: list[Finding] = []
    for name, make in {"train": data.make_train_set, "val": data.make_val_set}.items():
        try:
            sets[name] = make()
        except UserError as error:
            findings += _layout(error)
    return sets, findings


def open_images(name: str, images: SampleSet, workers: int, console: Console) -> Split:
    """Open every image of one split under a progress bar."""
    looks = track(
        look_at_all(images, workers),
        f"{name:<9}",
        len(images),
        console=console,
        disable=not console.is_terminal,
    )
    return Split(name, images.class_names, images.labels, list(looks))


def draw_sheet(
    sets: dict[str, SampleSet], splits: list[Split], count: int
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Small pictures of ``count`` usable images of each split with their tags; masks are laid over them."""
    pictures = []
    for split in splits:
        usable = np.flatnonzero([not each.problem for each in split.looks])
        for index in usable[choose(split.tags[usable], count)].tolist():
            sample = sets[split.name][index]
            image = sample["image"]
            if "mask" in sample:
                image = paint_label(image, sample["mask"], alpha=0.6)
            names = [split.class_names[tag] for tag in np.flatnonzero(split.tags[index])]
            tags = textwrap.shorten(f"{split.name}: {', '.join(names) or 'no tag'}", 56, placeholder=" …")
            pictures.append((textwrap.fill(tags, 28), shrink(image, _THUMBNAIL)))
    return pictures


@entry_point("inspect_data")
def main(cfg: DictConfig) -> float:
    """Look through the data and return the number of warnings.

    Raises:
        UserError: There are errors; they are printed before.
    """
    for key in ("workers", "pictures", "listed"):
        if cfg[key] is not None and cfg[key] < 0:
            raise UserError(f"{key}={cfg[key]}, need 0 or more: change it")
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    sets, findings = open_sets(cfg)
    for line in dict.fromkeys(_summary(images) for images in sets.values()):
        console.print(f"data      {line}")
    workers = (os.cpu_count() or 1) if cfg.workers is None else cfg.workers
    splits = [open_images(name, images, workers, console) for name, images in sets.items()]
    findings += find_problems(splits)
    write_report(folder / "report.json", cfg, sets, splits, findings)
    print_counts(splits, console)
    print_findings(findings, cfg.listed, console)
    pictures = draw_sheet(sets, splits, cfg.pictures)
    if pictures:
        save_figure(contact_sheet(pictures), folder / "contact_sheet.png")
        console.print(f"pictures  {folder / 'contact_sheet.png'}")
    console.print(f"report    {folder / 'report.json'}")
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise UserError(f"the data has errors ({errors}): mend what is listed above and in report.json")
    return float(len(findings))


def write_report(
    path: Path, cfg: DictConfig, sets: dict[str, SampleSet], splits: list[Split], findings: list[Finding]
) -> None:
    """Write everything as JSON; the file appears complete or not at all."""
    content = {
        "data": OmegaConf.to_container(cfg.data, resolve=True),
        "read_as": {name: _summary(images) for name, images in sets.items()},
        "splits": {split.name: describe(split) for split in splits},
        "images_without_tags": {split.name: _untagged(split) for split in splits},
        "findings": [finding._asdict() for finding in findings],
    }
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def print_counts(splits: list[Split], console: Console) -> None:
    """Print images of each class, pairs of classes and sizes."""
    reports = {split.name: describe(split, top=5) for split in splits}
    if not reports:
        return
    table = Table(title="Images of each class", title_justify="left")
    table.add_column("class")
    for name in reports:
        table.add_column(name, justify="right")
    counts = [report["classes"] for report in reports.values()]
    names = sorted(counts[0], key=lambda name: -sum(own[name] for own in counts))
    for name in names[:MAX_ROWS]:
        table.add_row(name, *(str(own[name]) for own in counts))
    if len(names) > MAX_ROWS:
        table.add_row(f"… {len(names) - MAX_ROWS} more", *("" for _ in counts))
    table.add_section()
    for label, key in {
        "no tag": "without_tags",
        "all images": "images",
        "tags an image": "tags_per_image",
    }.items():
        table.add_row(label, *(str(report[key]) for report in reports.values()))
    console.print(table, soft_wrap=False)
    for name, report in reports.items():
        _print_split(name, report, console)


def _print_split(name: str, report: dict[str, Any], console: Console) -> None:
    pairs = [f"{' + '.join(pair['classes'])} {pair['images']}" for pair in report["together"]]
    lines = {
        "sizes": ", ".join(
            f"{side} {report[side]['min']} to {report[side]['max']}, median {report[side]['median']}"
            for side in ("width", "height")
            if report[side]
        ),
        "most often": ", ".join(f"{size} ({count})" for size, count in report["common_sizes"].items()),
        "files": ", ".join(f"{kind} ({count})" for kind, count in report["kinds"].items()),
        "together": ", ".join(pairs),
        "masks": str(report["masks"]) if report["masks"] else "",
    }
    for label, text in lines.items():
        if text:
            console.print(f"{name:<6}{label:<11} {text}")


def print_findings(findings: list[Finding], listed: int, console: Console) -> None:
    """Print each finding in a line, ``listed`` of each kind at most."""
    for level, kind in dict.fromkeys((finding.level, finding.kind) for finding in findings):
        own = [finding.message for finding in findings if (finding.level, finding.kind) == (level, kind)]
        for message in own[:listed]:
            console.print(f"{level:<9} {message}")
        if len(own) > listed:
            console.print(f"{level:<9} … {len(own) - listed} more of this kind in report.json")
    if not findings:
        console.print("nothing to mend")


def _summary(images: SampleSet) -> str:
    """How a set was read, if it says."""
    return str(getattr(images, "summary", f"{len(images)} images"))


def _layout(error: UserError) -> list[Finding]:
    """The message of an error and its notes, which name what else is wrong."""
    return [Finding("error", "layout", line) for line in (str(error), *getattr(error, "__notes__", ()))]


def _untagged(split: Split) -> list[str]:
    looks: list[Look] = [split.looks[index] for index in np.flatnonzero(~split.tags.any(1))]
    return [each.place for each in looks]


if __name__ == "__main__":
    main()
