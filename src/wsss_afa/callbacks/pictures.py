"""Pictures of the first validation images at every stage from activation map to prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from wsss_afa.errors import say
from wsss_afa.loggers.dashboards import step_of, tell
from wsss_afa.methods.base import Method
from wsss_afa.ops.images import to_rgb
from wsss_afa.reports.visualize import Panel, Scene, paint_scene, picture_grid, save_figure, to_pixels
from wsss_afa.types import Batch


class Pictures(Callback):
    """Draw the first validation images at every stage from activation map to prediction, and their points.

    A point's row shows what a method makes of a pixel. With AFA that is figure 3 of the paper: the point of
    an object where its activation is highest, what it attends to, its learned affinity, the propagated map
    and the label made of it.

    Into ``directory`` go ``step_*.png`` and ``step_*_points.png``, or ``evaluation*.png`` where nothing is
    trained, of ``num_images`` rows; 0 draws none.
    """

    def __init__(self, directory: str, num_images: int = 6):
        self.directory, self.num_images = Path(directory), num_images
        self.last: Path | None = None

    def on_validation_epoch_start(self, *_: Any) -> None:
        """Start a new picture."""
        self._scenes: list[Scene] = []
        self._points: list[Scene] = []
        self._classes: set[int] = set()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Collect the rows of one batch."""
        assert isinstance(pl_module, Method)
        if not trainer.is_global_zero or trainer.sanity_checking or len(self._scenes) >= self.num_images:
            return
        found = pl_module.interpret(batch)
        layers = found.layers | {"prediction": outputs["seg"]}
        if "mask" in batch:
            layers["truth"] = batch["mask"]
        rgb = to_rgb(batch["image"], pl_module.mean, pl_module.std)
        names = pl_module.recipe["class_names"]
        for i, name in enumerate(batch["name"][: self.num_images - len(self._scenes)]):
            tags = batch["class_label"][i].nonzero().flatten().tolist()
            self._classes.update(tag + 1 for tag in tags)
            caption = f"{name}: {', '.join(names[tag] for tag in tags)}"
            self._scenes.append(_scene(caption, rgb[i], {title: layer[i] for title, layer in layers.items()}))
            for point in found.points[i] if found.points else ():
                caption = f"{name}: {names[point.class_index]}"
                labels = [each for each, layer in found.layers.items() if not layer.is_floating_point()]
                maps = point.maps | {title: found.layers[title][i] for title in labels[-1:]}
                self._points.append(_scene(caption, rgb[i], maps)._replace(point=point.place))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the pictures and show them on dashboards."""
        assert isinstance(pl_module, Method)
        if not self._scenes:
            return
        names = ["background", *pl_module.recipe["class_names"]]
        stem = f"step_{trainer.global_step:06d}" if trainer.state.fn == TrainerFn.FITTING else "evaluation"
        self.last = self._draw(trainer, self._scenes, names, stem, "images")
        if self._points:
            self._draw(trainer, self._points[: 2 * self.num_images], names, f"{stem}_points", "points")

    def teardown(self, trainer: L.Trainer, _: Any, stage: str) -> None:
        """Say where the last picture is."""
        if self.last is not None:
            say("pictures", self.last)

    def _draw(self, trainer: L.Trainer, scenes: list[Scene], names: list[str], stem: str, title: str) -> Path:
        classes = [(label, names[label]) for label in sorted(self._classes)]
        figure = picture_grid([(scene.caption, paint_scene(scene)) for scene in scenes], classes)
        path, step = self.directory / f"{stem}.png", step_of(trainer)
        save_figure(figure, path)
        tell(trainer, lambda screen: screen.picture(f"pictures/{title}", to_pixels(figure), step))
        tell(trainer, lambda screen: screen.scenes(title, scenes, names, step))
        return path


def panels(rgb: Tensor, layers: dict[str, Tensor], index: int) -> list[Panel]:
    """Paint one image (3, H, W) in [0, 1] and what was made of it, (B, H, W) by title."""
    return paint_scene(_scene("", rgb, {title: layer[index] for title, layer in layers.items()}))


def _scene(caption: str, rgb: Tensor, layers: dict[str, Tensor]) -> Scene:
    image = (rgb.permute(1, 2, 0) * 255).cpu().numpy().round().astype(np.uint8)
    return Scene(caption, image, {title: layer.cpu().numpy() for title, layer in layers.items()})
