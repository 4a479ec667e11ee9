"""What is written beside checkpoints: scores, a table, pictures."""

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

from wsss_afa.dashboard_points import Walk, look
from wsss_afa.dashboard_screens import step_of, tell
from wsss_afa.data.whole_file import write_whole
from wsss_afa.lightning_module import AFALightningModule
from wsss_afa.models.afa import AFANet
from wsss_afa.ops.pseudo_label import PseudoLabeler, own_classes, to_rgb
from wsss_afa.types import Batch
from wsss_afa.visualize import Panel, Scene, paint_scene, picture_grid, save_figure, to_pixels

COLUMNS = {"cam": "CAM", "affinity": "propagated CAM", "seg": "segmentation", "crf": "after CRF"}
"""What is scored, in the order of tables."""
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
        self.path = Path(directory) / "metrics.json"
        self.monitor = monitor
        self.checkpoint = checkpoint
        self.results: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record one validation of the whole set."""
        assert isinstance(pl_module, AFALightningModule)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        split = trainer.datamodule.val_split  # type: ignore[attr-defined]  # Lightning attaches it
        self.results |= {"protocol": pl_module.protocol.extra_repr(), "split": split}
        record = _record(trainer, pl_module)
        if self.checkpoint is not None:
            self.results |= {"checkpoint": self.checkpoint} | record
        else:
            record = {"step": trainer.global_step} | record
            best = self.results.get("best", record)
            self.results["best"] = record if record[self.monitor] > best[self.monitor] else best
            self.results["last"] = record
        write_whole(self.path, json.dumps(self.results, indent=2) + "\n")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Print the table of the last validation once everything is done."""
        if trainer.is_global_zero and self.results:
            console = Console()
            record = self.results.get("last", self.results)
            of = self.checkpoint or f"step {record['step']}"
            console.print(f"scores    of {of} on {self.results['split']}", soft_wrap=True)
            console.print(f"protocol  {self.results['protocol']}", soft_wrap=True)
            print_table(record, console)
            console.print(f"scores    {self.path}", soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        """Best and last so far, for a resumed run."""
        return dict(self.results)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved run's scores."""
        self.results = dict(state_dict)


def _record(trainer: L.Trainer, module: AFALightningModule) -> dict[str, Any]:
    """Scores in percent."""
    scores = {
        name: round(100 * value.item(), 3)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }
    names = ["background", *module.recipe["class_names"]]
    per_class = {
        source: {
            name: None if math.isnan(iou) else round(iou, 3) for name, iou in zip(names, column, strict=True)
        }
        for source, column in module.class_table().items()
    }
    return {**scores, "iou": per_class}


def print_table(record: dict[str, Any], console: Console) -> None:
    """Print per-class IoU in percent of every label that was scored, of classes with a true pixel."""
    console.print(f"classification mAP {record['val/map_cls']:.1f} %")
    if not record["iou"]:
        return
    sources = [source for source in COLUMNS if source in record["iou"]]
    table = Table(title="IoU (%)", title_justify="left")
    table.add_column("class")
    for source in sources:
        table.add_column(COLUMNS[source], justify="right")
    for name, iou in record["iou"]["seg"].items():
        if iou is not None:
            table.add_row(name, *(f"{record['iou'][source][name]:.1f}" for source in sources))
    table.add_section()
    table.add_row("mean", *(f"{record[f'val/miou_{source}']:.1f}" for source in sources), style="bold")
    console.print(table)


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
