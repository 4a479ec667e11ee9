"""How far a run is, on a terminal or in the log of a cluster's job."""

from __future__ import annotations
import json
import math
import sys
import time
from pathlib import Path
from typing import Any
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from torch import Tensor
from wsss_afa.methods.afa.attention_points import Walk, look
from wsss_afa.loggers.dashboards import step_of, tell
from wsss_afa.files import write_whole
from wsss_afa.methods.base import AFALightningModule
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.labels import own_classes
from wsss_afa.ops.images import to_rgb
from wsss_afa.types import Batch
from wsss_afa.visualize import Panel, Scene, paint_scene, picture_grid, save_figure, to_pixels
from wsss_afa.callbacks.scores import COLUMNS
from wsss_afa.callbacks.scores import ValidateAtEnd
from wsss_afa.callbacks.scores import Results
from wsss_afa.callbacks.scores import _record
from wsss_afa.callbacks.scores import print_table
from wsss_afa.callbacks.pictures import Pictures
from wsss_afa.callbacks.pictures import explain
from wsss_afa.callbacks.pictures import _interpret
from wsss_afa.callbacks.pictures import panels
from wsss_afa.callbacks.pictures import _scene


SILENCE = 300.0
"""Longest time in seconds without a line where there is no bar."""


def is_watched() -> bool:
    """Whether the output is a terminal that can draw, or a notebook; not so the log of a cluster's job."""
    console = Console()
    return console.is_jupyter or (console.is_interactive and sys.stdout.isatty())


class Progress(RichProgressBar):
    """Lightning's bar with steps, time left, loss and learning rate, readable at any magnitude.

    Where nobody watches there is no bar; a long pass over images then has a plain line every five minutes.
    """

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))
        self._said = time.monotonic()
        if not is_watched():
            self.disable()

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a run is one epoch

    def get_metrics(self, *arguments: Any) -> dict[str, int | str | float | dict[str, float]]:
        """What changes from step to step, by short names; scores have lines of their own."""
        metrics = super().get_metrics(*arguments)
        return {
            name.removeprefix("train/"): metrics[name] for name in ("train/loss", "lr") if name in metrics
        }

    def on_validation_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Draw, or say that the validation lives."""
        super().on_validation_batch_end(trainer, *arguments)
        self._tell(trainer, "validation", arguments[3] + 1, trainer.num_val_batches)

    def on_predict_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Draw, or say that the pass lives."""
        super().on_predict_batch_end(trainer, *arguments)
        self._tell(trainer, "labels", arguments[3] + 1, trainer.num_predict_batches)

    def _tell(self, trainer: L.Trainer, what: str, done: int, of: list[int | float]) -> None:
        if is_watched() or not trainer.is_global_zero or time.monotonic() < self._said + SILENCE:
            return
        self._said = time.monotonic()
        print(f"{what:<9} {done} of {sum(of)} images", flush=True)
