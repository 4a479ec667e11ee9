"""The background score that suits labels best, as far as images without masks can tell.

For each score it is counted how much of the images is labelled, how much the scores beside it disagree on,
which tags get pixels, and how much sharper than elsewhere images change where labels do. Refined labels are
right where their borders are sharpest, and labels of other sources where they cover as much as these do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torchmetrics import Metric

from wsss_afa.data.images import shrink
from wsss_afa.errors import say
from wsss_afa.files import write_whole
from wsss_afa.inference.label_source import LabelSource
from wsss_afa.inference.threshold_sweep import print_scores
from wsss_afa.ops.metrics import FOUND
from wsss_afa.reports.visualize import Panel, paint_label, picture_grid, save_figure
from wsss_afa.types import Batch

_SHOWN, _SIDE = 8, 320  # pictures of a contact sheet, and their longer side in pixels
_SCORES = 5  # that it shows: every other of those tried, around the suggested one
_COLUMNS = {"covered": "of a class", "undecided": "undecided", "found": "tags found", "contrast": "contrast"}
_REFINED = "par"
"""The source whose borders follow those of the image, where a method has it."""
Shown = tuple[str, NDArray[np.uint8], NDArray[np.uint8]]
"""Name of an image, its pixels (H, W, 3), and its labels (T, H, W) by background score."""


class LabelCensus(Metric):
    """What the labels of T background scores, in ascending order, have in common with their images."""

    full_state_update = False
    covered: Tensor
    undecided: Tensor
    found: Tensor
    contrast: Tensor
    images: Tensor
    tagged: Tensor
    tags: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        for name in ("covered", "undecided", "found", "contrast"):
            self.add_state(name, torch.zeros(count, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("images", "tagged", "tags"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, image: Tensor, labels: Tensor, tags: Tensor) -> None:
        """Count an image (3, H, W) with labels (T, H, W) int64 in [0, C] and its tags (C,)."""
        own = tags.bool()
        below, above = labels[:1], labels[-1:]
        lower, upper = torch.cat([below, labels[:-1]]), torch.cat([labels[1:], above])
        pixels = [each.flatten().bincount(minlength=len(own) + 1)[1:] for each in labels]
        shares = torch.stack(pixels) / labels[0].numel()  # (T, C)
        self.covered += shares.sum(1)
        self.undecided += (lower != upper).double().mean((1, 2))
        self.found += ((shares >= FOUND) & own).sum(1)
        self.contrast += border_contrast(image, labels)
        self.images += 1
        self.tagged += own.any()
        self.tags += own.sum()

    def compute(self) -> dict[str, Tensor]:
        """Means over images, or tags, (T,): shares in [0, 1], and contrast as a ratio."""
        images, tags = self.images.clamp(min=1), self.tags.clamp(min=1)
        shares = {"covered": self.covered / images, "undecided": self.undecided / images}
        return shares | {"found": self.found / tags, "contrast": self.contrast / self.tagged.clamp(min=1)}


def border_contrast(image: Tensor, labels: Tensor) -> Tensor:
    """How much more an image changes between neighbouring pixels of different labels than between any.

    Args:
        image: (3, H, W).
        labels: (T, H, W).

    Returns:
        Ratio (T,); 0 for a label without borders.

    Examples:
        >>> image = torch.tensor([0.0, 0.0, 3.0, 3.0]).expand(3, 1, 4)
        >>> border_contrast(image, torch.tensor([[[0, 0, 1, 1]], [[0, 1, 1, 1]], [[0, 0, 0, 0]]]))
        tensor([3., 0., 0.])
    """
    changes = [image.diff(dim=dim).abs().mean(0) for dim in (1, 2)]
    borders = [labels.diff(dim=dim) != 0 for dim in (1, 2)]
    mean = torch.cat([each.flatten() for each in changes]).mean()
    total = sum((change * border).sum((1, 2)) for change, border in zip(changes, borders, strict=True))
    length = sum(border.sum((1, 2)) for border in borders)
    ratio: Tensor = total / torch.as_tensor(length).clamp(min=1) / mean.clamp(min=1e-8)
    return ratio


class ThresholdChoice(L.LightningModule):
    """Compare the labels of every background score, ascending, for ``Trainer.predict`` over any images.

    Labels of the source ``par`` are compared beside those of another, if the method has it.
    """

    def __init__(self, source: LabelSource, thresholds: Sequence[float]):
        super().__init__()
        self.source, self.thresholds = source, sorted(set(thresholds))
        own = source.source == _REFINED or _REFINED not in source.method.sources
        self.refined = source if own else LabelSource(source.method, _REFINED, source.protocol)
        self.census = LabelCensus(len(self.thresholds))
        self.refined_census = self.census if own else LabelCensus(len(self.thresholds))
        self.results: dict[str, Any] = {}
        self.shown: list[Shown] = []

    @property
    def outcome(self) -> float:
        """The background score that is suggested."""
        return float(self.results["suggested"]["background"])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Count one image under every score; return its name."""
        image, tags = batch["image"][0], batch["class_label"][0]
        labels = torch.cat(self.source(batch, self.thresholds))  # (T, H, W)
        self.census.update(image, labels, tags)
        if self.refined is not self.source:
            self.refined_census.update(image, torch.cat(self.refined(batch, self.thresholds)), tags)
        every = max(1, int(self.trainer.num_predict_batches[0]) // _SHOWN)
        if batch_idx % every == 0 and len(self.shown) < _SHOWN:
            self.shown.append(self._show(batch, labels))
        return batch["name"]

    def _show(self, batch: Batch, labels: Tensor) -> Shown:
        method, image = self.source.method, batch["image"][0].permute(1, 2, 0).cpu()
        rgb = (image * torch.tensor(method.std) + torch.tensor(method.mean)).round().clamp(0, 255)
        small = [shrink(each.astype(np.uint8), _SIDE, nearest=True) for each in labels.cpu().numpy()]
        return batch["name"][0], shrink(rgb.numpy().astype(np.uint8), _SIDE), np.stack(small)

    def on_predict_epoch_end(self) -> None:
        """Collect what was counted of the whole set; the metrics sum it over processes themselves."""
        counted, refined = self.census.compute(), self.refined_census.compute()
        columns = {name: values.tolist() for name, values in counted.items()}
        tried = [
            {"background": score, **{name: round(values[i], 5) for name, values in columns.items()}}
            for i, score in enumerate(self.thresholds)
        ]
        sharpest = int(refined["contrast"].argmax())
        distance = (counted["covered"] - refined["covered"][sharpest]).abs()
        self.results = {
            "suggested": tried[int(distance.argmin())],
            "sharpest": {
                "source": self.refined.source,
                "background": self.thresholds[sharpest],
                "covered": round(float(refined["covered"][sharpest]), 5),
            },
            "thresholds": tried,
        }

    def write(self, folder: Path, of: dict[str, Any], console: Console) -> None:
        """Print what was found; write it and what it is ``of`` as JSON, and a contact sheet."""
        best, sharpest, tried = self.results.values()
        text = json.dumps(of | self.results, indent=2, ensure_ascii=False)
        write_whole(folder / "choice.json", text + "\n")
        print_scores("Labels by background score", _COLUMNS, tried, best, console)
        edge = best in (tried[0], tried[-1])
        remark = ", at the end of `thresholds`: try more" * edge
        where = f"source={sharpest['source']} background={sharpest['background']:g}"
        say("sharpest", f"{where}: {sharpest['covered']:.1%} of the pixels are of a class")
        say("suggested", f"background={best['background']:g}{remark}")
        say("table", folder / "choice.json")
        if self.shown:
            save_figure(draw_sheet(self, tried.index(best), of["class_names"]), folder / "choice.png")
            say("pictures", folder / "choice.png")


def draw_sheet(module: ThresholdChoice, best: int, class_names: Sequence[str]) -> Figure:
    """Some images, each beside its labels at five background scores, the suggested one among them."""
    others = range(best % 2, len(module.thresholds), 2)
    first = max(0, min(others.index(best) - _SCORES // 2, len(others) - _SCORES))
    places = others[first : first + _SCORES]
    rows = []
    for name, image, labels in module.shown:
        panels = [
            Panel(f"{module.thresholds[i]:g}" + ", suggested" * (i == best), paint_label(image, labels[i]))
            for i in places
        ]
        rows.append((name, [Panel("image", image), *panels]))
    seen = sorted({int(value) for _, _, labels in module.shown for value in np.unique(labels) if value})
    return picture_grid(rows, [(value, class_names[value - 1]) for value in seen])
