"""A run of a sweep that falls behind the runs beside it ends early, by a rule of Optuna's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich import get_console

from wsss_afa.reports.log import read_log

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial

MARK = "pruned"
"""File in the folder of a run that was ended, with the reason."""


class Pruning(Callback):
    """End training after a validation whose score is hopeless beside those of earlier runs.

    Runs are compared at the same step, and with those alone that trained to their end. What a sweeper gets of
    a run that was ended is its best score so far. The same command again leaves the run as it is.

    Args:
        directory: the run's folder; the other runs lie beside it and have a ``metrics.csv``.
        pruner: decides, from scores by step alone, as `optuna.pruners.MedianPruner`, `PercentilePruner`,
            `ThresholdPruner` and `PatientPruner` do; those that share out a budget know more.
        monitor: the score, the higher the better.
    """

    def __init__(self, directory: str, pruner: BasePruner, monitor: str = "val/miou_seg"):
        self.mark = Path(directory) / MARK
        self.pruner = pruner
        self.monitor = monitor
        self.scores: dict[int, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing more to a run that was ended before."""
        if trainer.strategy.broadcast(self.mark.is_file()):
            trainer.should_stop = True
            self._say(trainer, f"earlier; delete {self.mark} to train it to its end")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the pruner."""
        if trainer.sanity_checking:
            return
        step = trainer.global_step
        self.scores[step] = trainer.callback_metrics[self.monitor].item()
        early = trainer.is_global_zero and step < trainer.max_steps
        hopeless = early and self._falls_behind(trainer.max_steps)
        if trainer.strategy.broadcast(hopeless):
            trainer.should_stop = True
            reason = f"at step {step} of {trainer.max_steps} by {type(self.pruner).__name__}"
            self._say(trainer, reason)
            if trainer.is_global_zero:
                self.mark.write_text(f"{reason}\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """The scores so far."""
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a resumed run's scores."""
        self.scores = dict(state_dict["scores"])

    def _falls_behind(self, max_steps: int) -> bool:
        import optuna  # of the extra `sweep`

        optuna.logging.set_verbosity(logging.WARNING)
        study = optuna.create_study(direction="maximize", pruner=self.pruner)
        for path in sorted(self.mark.parent.parent.glob("*/metrics.csv")):
            scores = read_log(path).get(self.monitor, {})
            if path.parent != self.mark.parent and max_steps in scores:
                study.tell(_report(study.ask(), scores), scores[max_steps])
        return bool(_report(study.ask(), self.scores).should_prune())

    @staticmethod
    def _say(trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            get_console().print(f"pruned    {text}", soft_wrap=True, markup=False, highlight=False)


def _report(trial: Trial, scores: dict[int, float]) -> Trial:
    for step, score in scores.items():
        trial.report(score, step)
    return trial
