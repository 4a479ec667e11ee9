"""The background score that suits labels best: mIoU of each, from one pass over images with masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchmetrics import MeanMetric

from wsss_afa.errors import UserError, say
from wsss_afa.files import write_whole
from wsss_afa.inference.label_source import LabelSource, merge_labels
from wsss_afa.ops.metrics import SegmentationMetrics
from wsss_afa.reports.visualize import save_figure
from wsss_afa.types import IGNORE_INDEX, Batch

_FORMS = {"miou": ".1f", "contrast": ".2f"}
"""How numbers are printed; others are shares."""


class ThresholdSweep(L.LightningModule):
    """Score the labels of every background score, for ``Trainer.predict`` over images with masks.

    ``thresholds`` are the background scores to try; ``chosen`` is the score, or low and high, that labels
    would be written with, scored beside the others. ``class_names`` are the C foreground classes.
    """

    def __init__(
        self, source: LabelSource, thresholds: Sequence[float], chosen: Sequence[float],
        class_names: Sequence[str],
    ):  # fmt: skip
        super().__init__()
        self.source = source
        self.thresholds, self.chosen = list(thresholds), list(chosen)
        self.names = ["background", *class_names]
        self._scores = nn.ModuleList(SegmentationMetrics(len(self.names)) for _ in [*thresholds, "chosen"])
        self.share = MeanMetric().set_dtype(torch.float64)
        self.results: dict[str, Any] = {}

    @property
    def scores(self) -> list[SegmentationMetrics]:
        """Running scores of the thresholds, then of what is chosen."""
        return cast(list[SegmentationMetrics], list(self._scores))

    @property
    def outcome(self) -> float:
        """The best mIoU, in [0, 1]."""
        return float(self.results["best"]["miou"]) / 100

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Count one image under every threshold; return its name."""
        labels = self.source(batch, [*self.thresholds, *self.chosen])
        labels, chosen = labels[: len(self.thresholds)], merge_labels(labels[len(self.thresholds) :])
        mask, ignored = batch["mask"], chosen == IGNORE_INDEX
        pairs = [(label, mask) for label in labels]
        pairs.append((chosen.masked_fill(ignored, 0), mask.masked_fill(ignored, IGNORE_INDEX)))
        for metric, pair in zip(self.scores, pairs, strict=True):
            metric.update(*pair)
        self.share.update(~ignored[mask != IGNORE_INDEX])
        return batch["name"]

    def on_predict_epoch_end(self) -> None:
        """Collect the scores of the whole set, in percent; the metrics sum them over processes themselves."""
        backgrounds: list[Any] = [*self.thresholds, self.chosen]
        *tried, chosen = map(self._record, backgrounds, self.scores)
        chosen["labelled"] = _percent(self.share.compute()[None])[0]
        best = max(tried, key=lambda record: record["miou"])
        self.results = {"best": best, "chosen": chosen, "thresholds": tried}

    def write(self, folder: Path, of: dict[str, Any], console: Console) -> None:
        """Print what was found, and write it and what it is ``of`` as JSON and curve."""
        results = self.results
        text = json.dumps(of | results, indent=2, ensure_ascii=False)
        write_whole(folder / "sweep.json", text + "\n")
        save_figure(draw_curve(results, of["source"]), folder / "sweep.png")
        best, chosen = results["best"], results["chosen"]
        print_scores("mIoU (%) by background score", {"miou": "mIoU"}, results["thresholds"], best, console)
        scores = ", ".join(f"{score:g}" for score in chosen["background"])
        share = f"{chosen['labelled']:.1f} % of pixels that get a label"
        say("chosen", f"background=[{scores}]: mIoU {chosen['miou']:.1f} over the {share}")
        say("best", f"background={best['background']:g}: mIoU {best['miou']:.1f}")
        say("sweep", folder / "sweep.json")
        say("curve", folder / "sweep.png")

    def _record(self, background: Any, metric: SegmentationMetrics) -> dict[str, Any]:
        scores = metric.compute()
        shown = zip(self.names, _percent(scores["iou"]), strict=True)
        iou = {name: iou for name, iou in shown if iou == iou}
        return {"background": background, "miou": _percent(scores["miou"][None])[0], "iou": iou}


def _percent(values: Tensor) -> list[float]:
    return [round(100 * value, 3) for value in values.tolist()]


def print_scores(
    title: str, columns: Mapping[str, str], records: Sequence[Mapping[str, Any]], best: Mapping[str, Any],
    console: Console,
) -> None:  # fmt: skip
    """Print a row for each background score, the best in bold, with columns of titles by what they show."""
    table = Table("background", *columns.values(), title=title, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for record in records:
        numbers = (f"{record[name]:{_FORMS.get(name, '.1%')}}" for name in columns)
        table.add_row(f"{record['background']:g}", *numbers, style="bold" if record is best else None)
    console.print(table)


def check_thresholds(source: LabelSource, thresholds: Sequence[float], setting: str) -> None:
    """Refuse, by a UserError, a source without background score, and scores that are none."""
    if not source.has_background:
        what = f"{setting}=true: source={source.source} has no background score to vary"
        raise UserError(f"{what}; wsss-afa evaluate scores it")
    if not thresholds or not all(0 <= threshold <= 1 for threshold in thresholds):
        raise UserError(f"thresholds={thresholds}: need one or more numbers in [0, 1]")


def draw_curve(results: dict[str, Any], source: str) -> Figure:
    """MIoU over the background score; the best is marked."""
    figure = Figure(figsize=(4.5, 3), dpi=100, layout="constrained")
    tried, best = results["thresholds"], results["best"]
    axes = figure.add_subplot(xlabel="background score", ylabel="mIoU (%)")
    axes.plot([each["background"] for each in tried], [each["miou"] for each in tried], marker=".")
    axes.plot(best["background"], best["miou"], "o", color="tab:red")
    axes.set_title(f"source={source}: {best['miou']:.1f} % at {best['background']:g}", fontsize=10)
    axes.grid(alpha=0.3)
    return figure
