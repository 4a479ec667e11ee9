"""What an inspection found, as a person reads it: tables, lines, a file of JSON and a contact sheet."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from wsss_afa.data.images import shrink
from wsss_afa.data.inspection import Finding, Split, choose, describe, name_tags
from wsss_afa.data.sampler import SampleSet
from wsss_afa.errors import printable, say
from wsss_afa.files import write_whole
from wsss_afa.reports.visualize import paint_label

MAX_ROWS = 30  # classes in the printed table
_THUMBNAIL = 170  # longer side of a picture on the contact sheet in pixels


def write_report(path: Path, splits: list[Split], findings: list[Finding], **about: Any) -> None:
    """Write splits and findings as JSON, below ``about``, and all of it or nothing."""
    untagged = {own.name: np.flatnonzero(~own.tags.any(1)).tolist() for own in splits}
    content = about | {
        "splits": {split.name: describe(split) for split in splits},
        "images_without_tags": {own.name: [own.looks[i].place for i in untagged[own.name]] for own in splits},
        "findings": [finding._asdict() for finding in findings],
    }
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def print_counts(splits: list[Split], console: Console) -> None:
    """Print images of each class, pairs of classes and sizes."""
    reports = {split.name: describe(split, top=5) for split in splits}
    if not reports:
        return
    columns = [Column("class"), *(Column(name, justify="right") for name in reports)]
    table = Table(*columns, title="Images of each class", title_justify="left")
    counts = pd.DataFrame({name: report["classes"] for name, report in reports.items()})
    counts = counts.iloc[np.argsort(-counts.sum(axis=1), kind="stable")]
    for row in counts[:MAX_ROWS].itertuples():
        table.add_row(*map(printable, row))
    if len(counts) > MAX_ROWS:
        table.add_row(f"… {len(counts) - MAX_ROWS} more")
    table.add_section()
    labels = {"without_tags": "no tag", "images": "all images", "tags_per_image": "tags an image"}
    for key, label in labels.items():
        table.add_row(label, *(str(report[key]) for report in reports.values()))
    console.print(table, soft_wrap=False)
    for name, report in reports.items():
        for label, text in _lines(report).items():
            if text:
                console.print(printable(f"{name:<6}{label:<11} {text}"))


def _lines(report: dict[str, Any]) -> dict[str, str]:
    sides = [side for side in ("width", "height") if report[side]]
    pairs = [f"{' + '.join(pair['classes'])} {pair['images']}" for pair in report["together"]]
    return {
        "sizes": ", ".join("{} {min} to {max}, median {median}".format(s, **report[s]) for s in sides),
        "most often": _counted(report["common_sizes"]),
        "files": _counted(report["kinds"]),
        "together": ", ".join(pairs),
        "masks": str(report["masks"] or ""),
    }


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def print_findings(findings: list[Finding], listed: int, console: Console) -> None:
    """Print each finding in a line, ``listed`` of each kind at most."""
    for level, kind in dict.fromkeys(finding[:2] for finding in findings):
        own = [finding.message for finding in findings if finding[:2] == (level, kind)]
        more = [f"… {len(own) - listed} more of this kind in report.json"] if len(own) > listed else []
        for message in own[:listed] + more:
            say(level, message)
    if not findings:
        console.print("nothing to mend")


def draw_sheet(
    sets: Mapping[str, SampleSet], splits: list[Split], count: int
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Small pictures of ``count`` usable images of each split with their tags; masks are laid over them."""
    pictures = []
    for split in splits:
        usable = np.flatnonzero([not each.problem for each in split.looks])
        for index in usable[choose(split.tags[usable], count)].tolist():
            sample = sets[split.name][index]
            image, mask = sample["image"], sample.get("mask")
            image = image if mask is None else paint_label(image, mask, alpha=0.6)
            text = f"{split.name}: {name_tags(split, index) or 'no tag'}"
            title = textwrap.fill(textwrap.shorten(text, 56, placeholder=" …"), 28)
            pictures.append((title, shrink(image, _THUMBNAIL)))
    return pictures
