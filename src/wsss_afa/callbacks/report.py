"""Collect an evaluation's report while it runs, from every process, and write it."""

from __future__ import annotations

import json
import math
import platform
import time
from bisect import insort
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed

import wsss_afa
from wsss_afa.callbacks.pictures import panels
from wsss_afa.errors import UserError, printable, say
from wsss_afa.files import write_whole
from wsss_afa.methods.base import Method
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.metrics import COLUMNS, class_iou, count_pairs, rule_title, titles
from wsss_afa.reports.evaluation import Evaluation, Shot, confusion_csv, read_history, render, shrink
from wsss_afa.types import IGNORE_INDEX, Batch

T = TypeVar("T")
Rank = tuple[float, float, int]
"""Own mean IoU, share of right pixels, minus the place in the split."""


class Shortlist:
    """The ``count`` best and as many worst images of a stream; of images without masks the first."""

    def __init__(self, count: int):
        self.count = count
        self.ranked: list[Shot] = []
        self.unscored: list[Shot] = []

    def wants(self, rank: Rank) -> bool:
        """Whether an image of this rank belongs to the list so far."""
        if math.isnan(rank[0]) or self.count == 0:
            return len(self.unscored) < 2 * self.count
        middle = self.ranked[self.count - 1 : self.count + 1]
        return len(self.ranked) < 2 * self.count or rank < middle[0].rank or rank > middle[1].rank

    def add(self, shot: Shot) -> None:
        """Take an image in; another leaves if there are too many."""
        if math.isnan(shot.iou):
            self.unscored.append(shot)
        else:
            insort(self.ranked, shot, key=lambda each: each.rank)
            if len(self.ranked) > 2 * self.count:
                del self.ranked[self.count]


def choose(ranks: list[Rank], count: int) -> tuple[list[Rank], list[Rank]]:
    """The best, best first, and the worst, worst first; at most ``count`` each and none in both."""
    ranks = sorted(ranks)
    half = len(ranks) // 2
    best = ranks[len(ranks) - min(count, len(ranks) - half) :]
    return best[::-1], ranks[: min(count, half)]


class Report(Callback):
    """Write ``report.html`` and a ``confusion_*.csv`` for every label that was scored.

    Args:
        directory: where they go.
        checkpoint: what is evaluated; its training's history lies beside it or its folder ``checkpoints``. A
            program that evaluates a method without training names that instead.
        num_images: of the best and of the worst images to show; 0 shows none, less raises UserError.
    """

    def __init__(self, directory: str, checkpoint: str | None, num_images: int = 6):
        if num_images < 0:
            raise UserError(f"callbacks.report.num_images={num_images}, need 0 or more: change it")
        self.directory, self.checkpoint, self.num_images = Path(directory), Path(checkpoint or ""), num_images
        self._written = False

    def on_validation_epoch_start(self, *_: Any) -> None:
        """Start anew."""
        self._shortlist = Shortlist(self.num_images)
        self._seen, self._masked, self._start = 0, 0, time.monotonic()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count a batch, and draw its images if they are among the best or the worst so far."""
        assert isinstance(pl_module, Method)
        final = outputs.get("crf", outputs["seg"])
        wanted = {}
        for i in range(len(batch["name"])):
            place = trainer.world_size * self._seen + trainer.global_rank
            rank = _rank(final[i], batch, i, pl_module.num_classes + 1, place)
            self._seen, self._masked = self._seen + 1, self._masked + (not math.isnan(rank[0]))
            if self._shortlist.wants(rank):
                wanted[i] = rank
        for shot in _draw(pl_module, outputs, batch, wanted) if wanted else ():
            self._shortlist.add(shot)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather what the processes have and write the files."""
        assert isinstance(pl_module, Method)
        seen, masked = (sum(counts) for counts in zip(*_gather((self._seen, self._masked)), strict=True))
        sources = titles(pl_module.scores) if masked else {}
        matrices = {each: pl_module.scores[each].compute()["confusion"].cpu() for each in sources}
        precision = pl_module.average_precision.compute()["ap"].tolist()
        pictures = self._gather_pictures()
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        evaluation = Evaluation(
            facts=self._facts(trainer, pl_module, seen, masked),
            class_names=list(map(printable, pl_module.recipe["class_names"])),
            confusion={sources[each]: matrix for each, matrix in matrices.items()},
            average_precision=precision,
            pictures=pictures,
            history=read_history(self.checkpoint.absolute().parent, titles([*COLUMNS, *pl_module.scored])),
        )
        for source, matrix in matrices.items():
            table = confusion_csv(matrix, ["background", *evaluation.class_names])
            write_whole(self.directory / f"confusion_{source}.csv", table)
        write_whole(self.directory / "report.html", render(evaluation))
        self._written = True

    def teardown(self, trainer: L.Trainer, _: Any, stage: str) -> None:
        """Say where the report is."""
        if self._written:
            say("report", self.directory / "report.html")

    def _gather_pictures(self) -> dict[str, list[Shot]]:
        ranked, unscored = self._shortlist.ranked, self._shortlist.unscored
        ranks = [rank for own in _gather([shot.rank for shot in ranked]) for rank in own]
        best, worst = choose(ranks, self.num_images)
        shown = [shot for shot in ranked if shot.rank in (*best, *worst)] if ranks else unscored
        shots = {shot.place: shot for own in _gather(shown) for shot in own}  # no other pictures travel
        first = [] if ranks else sorted(shots)[: 2 * self.num_images]
        places = {"Best images": [-rank[2] for rank in best], "Worst images": [-rank[2] for rank in worst]}
        groups = places | {"Images": first}
        return {title: [shots[place] for place in group] for title, group in groups.items() if group}

    def _facts(self, trainer: L.Trainer, module: Method, seen: int, masked: int) -> dict[str, str]:
        on = torch.cuda.get_device_name(module.device) if module.device.type == "cuda" else module.device.type
        processes = f"{trainer.world_size} process{'es' * (trainer.world_size > 1)}"
        return {
            "checkpoint": str(self.checkpoint),
            **_rule(self.checkpoint),
            "split": str(trainer.datamodule.val_split),  # type: ignore[attr-defined]  # Lightning attaches it
            "protocol": module.protocol.extra_repr(),
            "images": f"{seen}" if masked == seen else f"{seen}, {masked} of them with a mask",
            "classes": f"{len(module.recipe['class_names'])} and background",
            "done": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, in {time.monotonic() - self._start:.0f} s",
            "on": f"{on}, {processes}, precision {trainer.precision}",
            "with": f"wsss_afa {wsss_afa.__version__}, torch {torch.__version__}, lightning {L.__version__}, "
            f"Python {platform.python_version()}",
        }


def _rule(checkpoint: Path) -> dict[str, str]:
    """What made a run call this checkpoint its best, if its ``metrics.json`` says so."""
    path = checkpoint.absolute().parent.parent / "metrics.json"
    if checkpoint.name != "best.ckpt" or not path.is_file():
        return {}
    with suppress(OSError, ValueError, TypeError, KeyError):
        return {"chosen": f"best of its run by {rule_title(json.loads(path.read_bytes())['best_by'])}"}
    return {}


def _rank(label: Tensor, batch: Batch, index: int, num_outputs: int, place: int) -> Rank:
    if "mask" not in batch:
        return math.nan, math.nan, -place
    confusion = count_pairs(label, batch["mask"][index], num_outputs)
    accuracy = confusion.diag().sum() / confusion.sum()
    return class_iou(confusion).nanmean().item(), accuracy.item(), -place


def _draw(module: Method, outputs: dict[str, Tensor], batch: Batch, ranks: dict[int, Rank]) -> Iterator[Shot]:
    layers = dict(module.interpret(batch).layers)
    layers |= {COLUMNS[key]: outputs[key] for key in ("seg", "crf") if key in outputs}
    if "mask" in batch:
        layers["truth"] = batch["mask"]
    rgb = to_rgb(batch["image"], module.mean, module.std)
    for i, (iou, accuracy, place) in ranks.items():
        true, extra = _labels(batch, i, outputs.get("crf", outputs["seg"])[i])
        yield Shot(batch["name"][i], -place, iou, accuracy, true, extra, shrink(panels(rgb[i], layers, i)))


def _labels(batch: Batch, index: int, prediction: Tensor) -> tuple[list[int], list[int]]:
    true = {tag + 1 for tag in batch["class_label"][index].nonzero().flatten().tolist()}
    if "mask" in batch:
        true = {*torch.unique(batch["mask"][index]).tolist()} - {0, IGNORE_INDEX}
    return sorted(true), sorted({*torch.unique(prediction).tolist()} - true - {0})


def _gather(value: T) -> list[T]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)  # pickled: for small values
    return values
