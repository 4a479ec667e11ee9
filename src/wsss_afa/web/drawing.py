"""Pictures and words of the pages as HTML, in which every name is text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from wsss_afa.errors import printable
from wsss_afa.reports.evaluation import shrink
from wsss_afa.reports.visualize import Panel, voc_palette
from wsss_afa.types import IGNORE_INDEX
from wsss_afa.web.labeller import Pixels


def asset(name: str) -> str:
    """Style, script or template: the content of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def text(value: object) -> str:
    """Any text as HTML that shows it."""
    return escape(printable(value))


def figures(panels: Sequence[Panel], side: int, kind: str = "few") -> str:
    """Pictures with their titles below; ``kind`` is the class of the grid that they stand in."""
    shown = "".join(
        f'<figure><img src="{uri}" alt=""><figcaption>{text(title)}</figcaption></figure>'
        for title, uri in shrink(panels, side)
    )
    return f'<div class="pictures {kind}">{shown}</div>'


def legend(labels: Iterable[int], class_names: Sequence[str]) -> str:
    """Colours and names of labels, background left out."""
    names = dict(enumerate(class_names, 1)) | {IGNORE_INDEX: "ignored"}
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in voc_palette().tolist()]
    chips = "".join(
        f'<span><i style="background:{colours[label]}" class="l{label}"></i>{text(names[label])}</span>'
        for label in labels
        if label in names
    )
    return f'<div class="legend">{chips}</div>'


def labels_in(labels: Iterable[Pixels]) -> list[int]:
    """Every label that some pixel has, ascending."""
    return sorted({int(value) for label in labels for value in np.unique(label)})


def score_table(rows: Sequence[tuple[str, float, float]]) -> str:
    """Classes with their score and their share of the pixels, both in [0, 1]."""
    cells = "".join(
        f"<tr><td>{text(name)}</td><td><meter value={score:.3f}></meter> {score:.2f}</td>"
        f"<td>{area:.1%}</td></tr>"
        for name, score, area in rows
    )
    head = "<tr><th>class</th><th>score</th><th>of the pixels</th></tr>"
    return f'<table class="scores">{head}{cells}</table>'
