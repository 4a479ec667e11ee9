"""Pictures of the first validation images at every stage from activation map to prediction."""

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
from wsss_afa.callbacks.progress import SILENCE
from wsss_afa.callbacks.progress import is_watched
from wsss_afa.callbacks.progress import Progress
from wsss_afa.callbacks.scores import ValidateAtEnd
from wsss_afa.callbacks.scores import Results
from wsss_afa.callbacks.scores import _record
from wsss_afa.callbacks.scores import print_table


class Pictures(Callback):
    """Draw the first validation images at every stage from activation map to prediction, and their points.

    A point's row has what figure 3 of the paper has: the point of an object where its activation is highest,
    what that point attends to, its learned affinity, the propagated map and the label made of it.

    Args:
        directory: where ``step_*.png`` and ``step_*_points.png`` go, or ``evaluation*.png`` where nothing is
            trained.
        num_images: rows of the picture; 0 draws none.
    """

    def __init__(self, directory: str, num_images: int = 6):
        self.directory = Path(directory)
        self.num_images = num_images
        self._scenes: list[Scene] = []
        self._points: list[Scene] = []
        self._classes: set[int] = set()
        self.last: Path | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new picture."""
        self._scenes, self._points, self._classes = [], [], set()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the rows of one batch."""
        assert isinstance(pl_module, AFALightningModule)
        if not trainer.is_global_zero or trainer.sanity_checking or len(self._scenes) >= self.num_images:
            return
        made, walk = _interpret(pl_module, batch)
        layers = made | {"prediction": outputs["seg"]}
        if "mask" in batch:
            layers["truth"] = batch["mask"]
        rgb = to_rgb(batch["image"], pl_module.labeler.mean, pl_module.labeler.std)
        names = pl_module.recipe["class_names"]
        for i, name in enumerate(batch["name"][: self.num_images - len(self._scenes)]):
            tags = batch["class_label"][i].nonzero().flatten().tolist()
            self._classes.update(tag + 1 for tag in tags)
            caption = f"{name}: {', '.join(names[tag] for tag in tags)}"
            self._scenes.append(_scene(caption, rgb[i], {title: layer[i] for title, layer in layers.items()}))
            for point in look(walk, i) if walk is not None else ():
                maps = point.maps | {"propagated label": made["propagated label"][i]}
                caption = f"{name}: {names[point.class_index]}"
                self._points.append(_scene(caption, rgb[i], maps)._replace(point=point.place))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the pictures and show them on dashboards."""
        assert isinstance(pl_module, AFALightningModule)
        if not self._scenes:
            return
        names = ["background", *pl_module.recipe["class_names"]]
        fitting = trainer.state.fn == TrainerFn.FITTING
        stem = f"step_{trainer.global_step:06d}" if fitting else "evaluation"
        self.last = self._draw(trainer, self._scenes, names, stem, "images")
        if self._points:
            self._draw(trainer, self._points[: 2 * self.num_images], names, f"{stem}_points", "points")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say where the last picture is."""
        if self.last is not None:
            Console().print(f"pictures  {self.last}", soft_wrap=True)

    def _draw(self, trainer: L.Trainer, scenes: list[Scene], names: list[str], stem: str, title: str) -> Path:
        classes = [(label, names[label]) for label in sorted(self._classes)]
        figure = picture_grid([(scene.caption, paint_scene(scene)) for scene in scenes], classes)
        path, step = self.directory / f"{stem}.png", step_of(trainer)
        save_figure(figure, path)
        tell(trainer, lambda screen: screen.picture(f"pictures/{title}", to_pixels(figure), step))
        tell(trainer, lambda screen: screen.scenes(title, scenes, names, step))
        return path


def explain(module: AFALightningModule, batch: Batch) -> dict[str, Tensor]:
    """Intermediate maps of a batch: ``CAM`` (B, H, W) in [0, 1] and the labels (B, H, W) made from it.

    None where labels are given instead of made.
    """
    return _interpret(module, batch)[0]


@torch.no_grad()
def _interpret(module: AFALightningModule, batch: Batch) -> tuple[dict[str, Tensor], Walk | None]:
    """What `explain` returns, and the propagation if there is one."""
    labeler, net = module.labeler, module.net
    if not isinstance(labeler, PseudoLabeler) or not isinstance(net, AFANet):
        return {}, None
    activation = labeler.cam(net, batch["image"])
    tags, box = batch["class_label"], batch["valid_box"]
    layers = {"CAM": (activation.cam * tags[:, :, None, None]).amax(1)}
    if labeler.refine is None:
        return layers, None
    rgb, classes = to_rgb(batch["image"], labeler.mean, labeler.std), own_classes(tags)
    with torch.autocast(rgb.device.type, enabled=False):
        layers["PAR label"] = labeler.label(labeler.refined_maps(rgb, activation.cam, classes), classes, box)
        if labeler.propagate is None:
            return layers, None
        affinity = labeler.affinity(net, activation.tokens)
        maps = labeler.propagated_maps(activation, affinity, classes)
        layers["propagated label"] = labeler.label(labeler.refine_in_box(rgb, maps, box), classes, box)
    return layers, Walk(activation, affinity, maps[0], classes)


def panels(rgb: Tensor, layers: dict[str, Tensor], index: int) -> list[Panel]:
    """Paint one image (3, H, W) in [0, 1] and what `explain` and others made of it, (B, H, W) by title."""
    return paint_scene(_scene("", rgb, {title: layer[index] for title, layer in layers.items()}))


def _scene(caption: str, rgb: Tensor, layers: dict[str, Tensor]) -> Scene:
    """One image (3, H, W) in [0, 1] and its layers (H, W)."""
    image = (rgb.permute(1, 2, 0) * 255).cpu().numpy().round().astype(np.uint8)
    return Scene(caption, image, {title: layer.cpu().numpy() for title, layer in layers.items()})
