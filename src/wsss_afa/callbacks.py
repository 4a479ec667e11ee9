"""What is written beside checkpoints: scores, a table, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wsss_afa.lightning_module import AFALightningModule
from wsss_afa.models.afa import AFANet
from wsss_afa.ops.pseudo_label import PseudoLabeler, own_classes, to_rgb
from wsss_afa.types import Batch
from wsss_afa.visualize import Panel, paint_heat, paint_label, picture_grid, save_figure

COLUMNS = {"cam": "CAM", "affinity": "propagated CAM", "seg": "segmentation", "crf": "after CRF"}
"""What is scored, in the order of tables."""


class Progress(RichProgressBar):
    """Lightning's bar with steps, time left, loss and learning rate, readable at any magnitude."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a run is one epoch


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
        _write_json(self.path, self.results)

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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


class Pictures(Callback):
    """Draw the first validation images at every stage from activation map to prediction.

    Args:
        directory: where ``step_*.png`` go, or ``evaluation.png`` where nothing is trained.
        num_images: rows of the picture; 0 draws none.
    """

    def __init__(self, directory: str, num_images: int = 6):
        self.directory = Path(directory)
        self.num_images = num_images
        self._rows: list[tuple[str, list[Panel]]] = []
        self._classes: set[int] = set()
        self.last: Path | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new picture."""
        self._rows, self._classes = [], set()

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
        if not trainer.is_global_zero or trainer.sanity_checking or len(self._rows) >= self.num_images:
            return
        layers = explain(pl_module, batch) | {"prediction": outputs["seg"]}
        if "mask" in batch:
            layers["truth"] = batch["mask"]
        rgb = to_rgb(batch["image"], pl_module.labeler.mean, pl_module.labeler.std)
        for i, name in enumerate(batch["name"]):
            tags = batch["class_label"][i].nonzero().flatten().tolist()
            self._classes.update(tag + 1 for tag in tags)
            names = [pl_module.recipe["class_names"][tag] for tag in tags]
            self._rows.append((f"{name}: {', '.join(names)}", panels(rgb[i], layers, i)))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the picture."""
        assert isinstance(pl_module, AFALightningModule)
        if self._rows:
            names = pl_module.recipe["class_names"]
            classes = [(label, names[label - 1]) for label in sorted(self._classes)]
            name = (
                f"step_{trainer.global_step:06d}" if trainer.state.fn == TrainerFn.FITTING else "evaluation"
            )
            self.last = self.directory / f"{name}.png"
            save_figure(picture_grid(self._rows[: self.num_images], classes), self.last)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say where the last picture is."""
        if self.last is not None:
            Console().print(f"pictures  {self.last}", soft_wrap=True)


@torch.no_grad()
def explain(module: AFALightningModule, batch: Batch) -> dict[str, Tensor]:
    """Intermediate maps of a batch: ``CAM`` (B, H, W) in [0, 1] and the labels (B, H, W) made from it.

    None where labels are given instead of made.
    """
    labeler, net = module.labeler, module.net
    if not isinstance(labeler, PseudoLabeler) or not isinstance(net, AFANet):
        return {}
    activation = labeler.cam(net, batch["image"])
    tags, box = batch["class_label"], batch["valid_box"]
    layers = {"CAM": (activation.cam * tags[:, :, None, None]).amax(1)}
    if labeler.refine is None:
        return layers
    rgb, classes = to_rgb(batch["image"], labeler.mean, labeler.std), own_classes(tags)
    with torch.autocast(rgb.device.type, enabled=False):
        layers["PAR label"] = labeler.label(labeler.refined_maps(rgb, activation.cam, classes), classes, box)
        if labeler.propagate is not None:
            maps = labeler.propagated_maps(activation, net.affinity_head(activation.tokens), classes)
            layers["propagated label"] = labeler.label(labeler.refine_in_box(rgb, maps, box), classes, box)
    return layers


def panels(rgb: Tensor, layers: dict[str, Tensor], index: int) -> list[Panel]:
    """Paint one image (3, H, W) in [0, 1] and what `explain` and others made of it, (B, H, W) by title."""
    image = _array(rgb.permute(1, 2, 0) * 255).round().astype(np.uint8)
    painted = [Panel("image", image)]
    for title, layer in layers.items():
        values = _array(layer[index])
        paint = paint_heat if title == "CAM" else paint_label
        painted.append(Panel(title, paint(image, values)))
    return painted


def _array(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()
