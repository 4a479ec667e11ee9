"""What a dashboard gets of a run beside numbers and pictures: settings, scores by class, the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from wsss_afa.loggers.dashboards import screens, step_of, tell
from wsss_afa.methods.base import Method
from wsss_afa.ops.metrics import titles
from wsss_afa.reports.visualize import confusion_figure, to_pixels


class Dashboard(Callback):
    """Hand on the composed settings, ``run.json``, scores by class, confusion matrix and best checkpoint.

    Stands behind the callbacks that write ``run.json`` and ``metrics.json`` into the run's ``directory``;
    ``config`` is the whole configuration, resolved.
    """

    def __init__(self, directory: str, config: dict[str, Any]):
        self.directory, self.config = Path(directory), config

    def setup(self, trainer: L.Trainer, _: Any, stage: str) -> None:
        """Hand on the settings."""
        self._record(trainer, self.config)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Hand on seeds, versions, git commit and device."""
        self._record(trainer, {"run": _read(self.directory / "run.json")})

    def _record(self, trainer: L.Trainer, settings: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # both lie beside its file
                logger.log_hyperparams(settings)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show IoU by class and the confusion matrix of the segmentation."""
        assert isinstance(pl_module, Method)
        ious = pl_module.class_table() if screens(trainer) and not trainer.sanity_checking else {}
        if not ious:
            return
        step, names = step_of(trainer), ["background", *pl_module.recipe["class_names"]]
        sources = titles(ious)
        columns = ["class", *sources.values()]
        table = zip(names, *(ious[source] for source in sources), strict=True)
        rows = [[None if cell != cell else cell for cell in row] for row in table]
        confusion = pl_module.scores["seg"].compute()["confusion"].cpu().numpy()
        picture = to_pixels(confusion_figure(confusion, names))
        tell(trainer, lambda screen: screen.table("val/iou_by_class", columns, rows, step))
        tell(trainer, lambda screen: screen.picture("val/confusion", picture, step))
        tell(trainer, lambda screen: screen.confusion("val/confusion_chart", confusion, names, step))

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the best checkpoint, with the scores that it had."""
        checkpoint = trainer.checkpoint_callback
        if not isinstance(checkpoint, ModelCheckpoint) or not Path(checkpoint.best_model_path).is_file():
            return
        path = Path(checkpoint.best_model_path)
        best = _read(self.directory / "metrics.json").get("best", {})
        aliases = ["best", *([f"step_{best['step']}"] if best else [])]
        tell(trainer, lambda screen: screen.checkpoint(path, aliases, best))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}
