"""Scores of every validation: ``metrics.json`` and the table at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table

from wsss_afa.callbacks.checkpoints import trains_segmentation
from wsss_afa.errors import plain_console, printable, say
from wsss_afa.files import write_whole
from wsss_afa.methods.base import Method
from wsss_afa.ops.metrics import titles


class ValidateAtEnd(Callback):
    """Validate after the last step even where no interval ends there."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Ask Lightning to stop, which validates first, once all steps are done."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class Results(Callback):
    """Write scores to ``metrics.json`` and print a table of per-class IoU at the end.

    Of a training run the best and the last validation are kept, of an evaluation all there is. Scores are in
    percent and stand beside the protocol and the split that they were measured with.

    Args:
        directory: where the file goes.
        monitor: the score that decides which validation is best.
        checkpoint: what is evaluated, where nothing is trained.
    """

    def __init__(self, directory: str, monitor: str = "val/miou_seg", checkpoint: str | None = None):
        self.path, self.monitor, self.checkpoint = Path(directory) / "metrics.json", monitor, checkpoint
        self.results: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record one validation of the whole set."""
        assert isinstance(pl_module, Method)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        split = trainer.datamodule.val_split  # type: ignore[attr-defined]  # Lightning attaches it
        self.results |= {"protocol": pl_module.protocol.extra_repr(), "split": split}
        record = _record(trainer, pl_module)
        if self.checkpoint is not None:
            self.results |= {"checkpoint": self.checkpoint} | record
        else:
            record = {"step": trainer.global_step} | record
            if trains_segmentation(trainer, pl_module) and self._is_best(trainer):
                self.results |= {"best": record, "best_by": self.monitor}
            self.results["last"] = record
        write_whole(self.path, json.dumps(self.results, indent=2) + "\n")

    def _is_best(self, trainer: L.Trainer) -> bool:
        """Whether the checkpoint's callback, which comes later, will take this validation for the best."""
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        return best is None or bool(trainer.callback_metrics[self.monitor] >= best)

    def teardown(self, trainer: L.Trainer, _: Any, stage: str) -> None:
        """Print the table of the last validation once everything is done."""
        if trainer.is_global_zero and self.results:
            record = self.results.get("last", self.results)
            of = self.checkpoint or f"step {record['step']}"
            say("scores", f"of {of} on {self.results['split']}")
            say("protocol", self.results["protocol"])
            print_table(record, plain_console())
            say("scores", self.path)

    def state_dict(self) -> dict[str, Any]:
        """Best and last so far, for a resumed run."""
        return dict(self.results)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved run's scores."""
        self.results = dict(state_dict)


def _record(trainer: L.Trainer, module: Method) -> dict[str, Any]:
    metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    scores = {name: round(100 * value.item(), 3) for name, value in metrics.items()}
    names = ["background", *module.recipe["class_names"]]
    iou = {}
    for source, column in module.class_table().items():
        values = [None if math.isnan(value) else round(value, 3) for value in column]
        iou[source] = dict(zip(names, values, strict=True))
    return {**scores, "iou": iou}


def print_table(record: dict[str, Any], console: Console) -> None:
    """Print per-class IoU in percent of every label that was scored, of classes with a true pixel."""
    console.print(f"classification mAP {record['val/map_cls']:.1f} %")
    if not record["iou"]:
        return
    sources = titles(record["iou"])
    table = Table("class", title="IoU (%)", title_justify="left")
    for title in sources.values():
        table.add_column(title, justify="right")
    for name, iou in record["iou"]["seg"].items():
        if iou is not None:
            table.add_row(printable(name), *(f"{record['iou'][source][name]:.1f}" for source in sources))
    table.add_section()
    table.add_row("mean", *(f"{record[f'val/miou_{source}']:.1f}" for source in sources), style="bold")
    console.print(table, soft_wrap=False)
