"""An evaluation as one HTML page that needs nothing beside it: pictures, charts and style are inside.

Every number comes from the confusion matrices; nothing is averaged over images.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from wsss_afa.ops.metrics import class_iou
from wsss_afa.reports.log import read_log
from wsss_afa.reports.visualize import Panel, confusion_figure, curve_figure, to_svg, voc_palette

THUMBNAIL = 240
"""Longer side of a picture in pixels; smaller ones stay as they are."""
MAX_CONFUSIONS = 15
"""Rows of a list of confusions."""
_COLOURS = ("#a3a3a3", "#d99a2b", "#3f76ad", "#16304f")  # of scored labels, the protocol's last one last


class Shot(NamedTuple):
    """One image and what was made of it."""

    name: str
    place: int  # place in the split
    iou: float  # the image's own mean IoU in [0, 1]; NaN without a mask
    accuracy: float  # its share of right pixels in [0, 1]; NaN without a mask
    labels: list[int]  # foreground labels that its mask, or without one its tags, name
    extra: list[int]  # foreground labels that were predicted beside them
    panels: list[tuple[str, str]]  # title and data URI of each picture

    @property
    def rank(self) -> tuple[float, float, int]:
        """Better images have larger ones; no two images have the same."""
        return self.iou, self.accuracy, -self.place


class Evaluation(NamedTuple):
    """What a report is made of."""

    facts: dict[str, str]  # checkpoint, split, protocol and whatever else stands at the top, by name
    class_names: Sequence[str]  # C foreground classes
    confusion: dict[str, Tensor]  # (K, K) int64 by title, the protocol's last map last; empty without masks
    average_precision: Sequence[float]  # of each class's tags, in [0, 1]; NaN where no image has the class
    pictures: dict[str, list[Shot]]  # images by heading
    history: dict[str, list[tuple[int, float]]]  # step and mIoU (%) of validations by title; may be empty


class Score(NamedTuple):
    """Scores of one confusion matrix in [0, 1]; mean accuracy is the classes' mean recall."""

    miou: float
    pixel_accuracy: float
    mean_accuracy: float


def score(confusion: Tensor) -> Score:
    """Scores of a confusion matrix (K, K); classes without a true pixel are left out of the means."""
    counts = confusion.double()
    hits = counts.diag()
    miou, recall = class_iou(confusion).nanmean(), (hits / counts.sum(1)).nanmean()
    return Score(miou.item(), (hits.sum() / counts.sum()).item(), recall.item())


def class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What the table says of each class, best IoU first and those without a true pixel last."""
    matrices = list(evaluation.confusion.values())
    names, precisions = ["background", *evaluation.class_names], [math.nan, *evaluation.average_precision]
    table = pd.DataFrame({"name": names, "ap": precisions})
    if not matrices:
        return list(table[1:].sort_values("ap", ascending=False, kind="stable").to_dict("records"))
    counts = matrices[-1].double()
    table["precision"] = (counts.diag() / counts.sum(0)).numpy()
    table["recall"] = (counts.diag() / counts.sum(1)).numpy()
    table["share"] = (counts.sum(1) / counts.sum()).numpy()
    table["ious"] = list(zip(*(class_iou(matrix).tolist() for matrix in matrices), strict=True))
    table["iou"] = class_iou(matrices[-1]).numpy()
    return list(table.sort_values("iou", ascending=False, kind="stable").to_dict("records"))


def top_confusions(confusion: Tensor, names: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Largest shares of a class's pixels called another, of (K, K) int64: foreground's, then background's."""
    counts = confusion.numpy()
    rows, columns = np.nonzero(counts - np.diag(counts.diagonal()))
    labels, pixels = np.array(names, object), counts[rows, columns]
    pairs = pd.DataFrame({"true": labels[rows], "predicted": labels[columns]})
    pairs["share"], pairs["pixels"] = pixels / counts.sum(1)[rows], pixels
    with_background = (rows == 0) | (columns == 0)
    groups = (pairs[~with_background], pairs[with_background])
    return [list(group.nlargest(MAX_CONFUSIONS, "share").to_dict("records")) for group in groups]


def shrink(panels: Sequence[Panel], side: int = THUMBNAIL) -> list[tuple[str, str]]:
    """Title and data URI of small JPEGs of some pictures, whose longer side is at most ``side`` pixels."""
    shrunk = []
    for panel in panels:
        image, buffer = Image.fromarray(panel.pixels), io.BytesIO()
        image.thumbnail((side, side))
        image.save(buffer, "JPEG", quality=85, subsampling=0)
        shrunk.append((panel.title, data_uri(buffer.getvalue(), "image/jpeg")))
    return shrunk


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a media type as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def render(evaluation: Evaluation) -> str:
    """The page."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["percent"] = percent
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")  # narrow space
    names = ["background", *evaluation.class_names]
    titles, matrices = list(evaluation.confusion), list(evaluation.confusion.values())
    colours = dict(zip(reversed(titles), itertools.cycle(reversed(_COLOURS)), strict=False))
    precision = [value for value in evaluation.average_precision if not math.isnan(value)]
    history, svg = evaluation.history, "image/svg+xml"
    content = {
        "evaluation": evaluation,
        "scores": {title: score(matrix) for title, matrix in evaluation.confusion.items()},
        "colours": colours,
        "map": sum(precision) / len(precision) if precision else math.nan,
        "tagged_classes": len(precision),
        "rows": class_rows(evaluation),
        "pixels": int(matrices[-1].sum()) if matrices else 0,
        "true_classes": int((matrices[-1].sum(1) > 0).sum()) if matrices else 0,
        "heat_map": data_uri(to_svg(confusion_figure(matrices[-1].numpy(), names)), svg) if matrices else "",
        "confusions": top_confusions(matrices[-1], names) if matrices else [],
        "curves": data_uri(to_svg(curve_figure(history, colours)), svg) if history else "",
        "names": names,
        "palette": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in voc_palette().tolist()],
    }
    return environment.get_template("report.html.jinja").render(content)


def percent(value: float, digits: int = 1) -> str:
    """A number of [0, 1] in percent, rounded as in ``metrics.json`` first; a dash for NaN."""
    return "–" if math.isnan(value) else f"{round(100 * value, 3):.{digits}f}"


def confusion_csv(confusion: Tensor, names: Sequence[str]) -> str:
    """A confusion matrix (K, K) as CSV: a row for each true class, a column for each predicted class."""
    table = pd.DataFrame(confusion.numpy(), names, names)
    return str(table.to_csv(index_label="true \\ predicted", lineterminator="\n"))


def read_history(run: Path, titles: dict[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Step and mIoU in percent of each validation of a training run, by title.

    ``run`` is its folder, or ``checkpoints`` in it; without a ``metrics.csv`` of such columns there is none.
    """
    path = (run.parent if run.name == "checkpoints" else run) / "metrics.csv"
    log = read_log(path) if path.is_file() else {}
    curves = {title: log[name] for key, title in titles.items() if (name := f"val/miou_{key}") in log}
    return {title: list((100 * curve).items()) for title, curve in curves.items() if len(curve)}
