"""What a dashboard can show beside numbers, and how each kind of logger is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from PIL import Image

from wsss_afa.errors import printable
from wsss_afa.reports.visualize import Scene, paint_scene
from wsss_afa.types import IGNORE_INDEX

_SIDE = 320  # longest side of a heat map on a dashboard, in pixels


class Screen:
    """A run's logger that shows more than numbers. What a kind cannot show it leaves out, here everything."""

    def __init__(self, logger: Any = None):
        self.logger = logger

    def scenes(self, section: str, scenes: Sequence[Scene], classes: Sequence[str], step: int) -> None:
        """Show images one by one with their layers; ``classes`` are K names, background first."""

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show one picture (H, W, 3)."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table."""

    def confusion(self, name: str, counts: NDArray[np.int64], classes: Sequence[str], step: int) -> None:
        """Show a confusion matrix (K, K), true classes in rows, as a chart that can be explored."""

    def checkpoint(self, path: Path, aliases: Sequence[str], facts: dict[str, Any]) -> None:
        """Keep a file with the run."""


class WandbScreen(Screen):
    """Weights & Biases: layers are switched on and off in the browser."""

    def scenes(self, section: str, scenes: Sequence[Scene], classes: Sequence[str], step: int) -> None:
        """Labels are masks over the image with the names of their classes; heat maps are images."""
        import wandb

        names = {**dict(enumerate(map(printable, classes))), IGNORE_INDEX: "ignored"}
        shown: dict[str, list[Any]] = {}
        for scene in map(partial(_letterboxed, size=_common_size(scenes)), scenes):
            labels = {title: layer for title, layer in scene.layers.items() if layer.dtype.kind != "f"}
            masks = {
                title: {"mask_data": layer.astype(np.uint8), "class_labels": names}
                for title, layer in labels.items()
            }
            if masks:
                image = wandb.Image(
                    scene.image, caption=printable(scene.caption), masks=masks, file_type="jpg"
                )
                shown.setdefault(f"{section}/labels", []).append(image)
            for panel in paint_scene(scene):
                if panel.title in scene.layers and panel.title not in masks:
                    heat = Image.fromarray(panel.pixels)
                    heat.thumbnail((_SIDE, _SIDE))
                    each = wandb.Image(heat, caption=printable(scene.caption), file_type="jpg")
                    shown.setdefault(f"{section}/{panel.title}", []).append(each)
        self.logger.log_metrics(shown, step)

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show one picture (H, W, 3)."""
        import wandb

        self.logger.log_metrics({name: wandb.Image(pixels)}, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table that can be sorted, and compared between runs and steps."""
        import wandb

        self.logger.log_metrics(
            {
                name: wandb.Table(
                    list(columns),
                    [[printable(each) if isinstance(each, str) else each for each in row] for row in rows],
                )
            },
            step,
        )

    def confusion(self, name: str, counts: NDArray[np.int64], classes: Sequence[str], step: int) -> None:
        """Show W&B's own confusion matrix; pairs that never occur are left out."""
        import wandb

        classes = list(map(printable, classes))
        columns = ["Actual", "Predicted", "nPredictions"]
        pairs = [[classes[i], classes[j], int(counts[i, j])] for i, j in np.argwhere(counts)]
        table, fields = wandb.Table(columns=columns, data=pairs), {column: column for column in columns}
        title = {"title": "pixels of each true and predicted class"}
        chart = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, title)
        self.logger.log_metrics({name: chart}, step)

    def checkpoint(self, path: Path, aliases: Sequence[str], facts: dict[str, Any]) -> None:
        """Keep a file as an artifact of the run; it is read where it lies, when it is uploaded."""
        import wandb

        run = self.logger.experiment
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata=facts)
        artifact.add_file(str(path), policy="immutable")
        run.log_artifact(artifact, aliases=list(aliases))


def _common_size(scenes: Sequence[Scene]) -> tuple[int, int]:
    """(H, W) that holds all images; W&B draws a whole list at the size of its first."""
    heights, widths = zip(*(scene.image.shape[:2] for scene in scenes), strict=True)
    return max(heights), max(widths)


def _letterboxed(scene: Scene, size: tuple[int, int]) -> Scene:
    """The scene on a black canvas (H, W), in the upper left corner; labels are 0 beyond the image."""
    below, right = (full - side for full, side in zip(size, scene.image.shape[:2], strict=True))
    layers = {title: np.pad(layer, ((0, below), (0, right))) for title, layer in scene.layers.items()}
    return scene._replace(image=np.pad(scene.image, ((0, below), (0, right), (0, 0))), layers=layers)


class TensorBoardScreen(Screen):
    """TensorBoard: whole pictures, and tables as text."""

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Show one picture (H, W, 3)."""
        self.logger.experiment.add_image(name, pixels, step, dataformats="HWC")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show a table in Markdown."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        self.logger.experiment.add_text(name, text, step)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return "" if value is None else f"{value:.1f}"
    return re.sub(r"([\\`*_{}\[\]<>()#+.!|~&-])", r"\\\1", printable(value))  # as text, not as Markdown


def screens(trainer: L.Trainer) -> list[Screen]:
    """Of the first process's loggers that show more than numbers."""
    kinds = ((WandbLogger, WandbScreen), (TensorBoardLogger, TensorBoardScreen))
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [screen(logger) for logger in loggers for kind, screen in kinds if isinstance(logger, kind)]


def tell(trainer: L.Trainer, show: Callable[[Screen], None]) -> None:
    """Call ``show`` with the screen of every dashboard; a failure is a warning."""
    for screen in screens(trainer):
        try:
            show(screen)
        except Exception as error:
            what = f"{type(screen).__name__} shows less, training goes on"
            rank_zero_warn(f"{what}: {type(error).__name__}: {error}")


def step_of(trainer: L.Trainer) -> int:
    """The step that Lightning logs a validation under: that of the last update, from 0."""
    return max(0, trainer.global_step - 1)
