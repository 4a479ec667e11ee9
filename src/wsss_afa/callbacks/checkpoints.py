"""Checkpoints that survive: written whole or not at all, checked, at every few steps.

A checkpoint is taken between two steps: the optimiser has stepped, the step's numbers are logged, its
validation, if one was due, is over. A run resumed from it repeats the unbroken run's every bit.
"""

from __future__ import annotations

import copy
import io
import math
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from wsss_afa.callbacks.resume import read_checked
from wsss_afa.errors import UserError
from wsss_afa.files import sync_folder, write_whole

_STEP = re.compile(r"step_(\d+)\.ckpt")


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, to the disk itself, reads back and only then renames.

    A disk that is full or read-only does not stop training: the file under this name, if any, stays as it
    was, and a warning says so.
    """

    def __init__(self) -> None:
        self.failed: set[str] = set()
        """Paths whose latest write came to nothing; known to the process that writes."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one checkpoint."""
        buffer = io.BytesIO()  # what cannot be serialised is a bug and raises here
        torch.save(checkpoint, buffer)
        try:
            write_whole(Path(path), buffer.getbuffer(), check=read_checked)
            sync_folder(Path(path).parent)  # the new name too
            self.failed.discard(str(path))
        except (OSError, ValueError) as error:
            self.failed.add(str(path))
            folder, what = Path(path).parent, error.strerror if isinstance(error, OSError) else error
            free = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0.0
            rank_zero_warn(f"{path}: not written, training goes on without it ({what}; {free:.0f} MiB free)")


def at_step_boundary(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the batch at hand begins a step, and the step before it can be saved.

    After a validation it cannot: Lightning, resuming there, would count one step too many. The checkpoint of
    the validation itself has that step.
    """
    return batch_idx % trainer.accumulate_grad_batches == 0 and not _validates_at(trainer, batch_idx)


def _validates_at(trainer: L.Trainer, batches: int) -> bool:
    return trainer.enable_validation and batches % (trainer.val_check_batch or math.inf) == 0


def save_step(trainer: L.Trainer, directory: Path) -> Path:
    """Save the finished step while the next one's first batch is at hand, which is not counted as begun."""
    path = directory / f"step_{trainer.global_step:06d}.ckpt"
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.ready -= 1
    trainer.save_checkpoint(path)
    for counts in (progress.total, progress.current):
        counts.ready += 1
    return path


def trains_segmentation(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether a step so far trained the segmentation, without which a validation says nothing of it."""
    first: int = getattr(module, "segmentation_step", 0)  # of a `Method`
    return trainer.global_step > first


def step_files(directory: Path) -> list[Path]:
    """The files ``step_*.ckpt`` of a directory, by their step."""
    steps = ((_STEP.fullmatch(path.name), path) for path in directory.glob("step_*.ckpt"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in steps if match)]


class StepCheckpoints(Callback):
    """Save every few steps, and before a step that a validation follows: a long one then costs one step.

    A value out of its range, and from training a validation in the middle of a step, raises UserError.

    Args:
        directory: Where ``step_*.ckpt`` go.
        every_n_steps: Optimiser steps between them.
        keep: How many stay; two at least, so that a damaged one has one before it.
    """

    def __init__(self, directory: str, every_n_steps: int = 500, keep: int = 2):
        if every_n_steps < 1 or keep < 2:
            raise UserError(f"callbacks.steps: {every_n_steps=} and {keep=}, need 1 and 2 or more")
        self.directory, self.every_n_steps, self.keep = Path(directory), every_n_steps, keep
        self._saved = 0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Check the interval of validations and forget what a killed run had begun to write."""
        parts = trainer.accumulate_grad_batches
        if trainer.enable_validation and (trainer.val_check_batch or 0) % parts:
            given = f"trainer.val_check_interval={trainer.val_check_batch} batches"
            need = f"need a multiple of trainer.accumulate_grad_batches={parts}"
            raise UserError(f"{given}, {need}: checkpoints are taken between steps")
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            for partial in (*self.directory.glob(".*.partial"), *self.directory.glob("*.ckpt.partial")):
                partial.unlink(missing_ok=True)  # the run's folder is this process's alone

    def on_load_checkpoint(self, trainer: L.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """A finished run's last batch is not the last of a run that is to be longer now."""
        if checkpoint["global_step"] < trainer.max_steps:
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Save the step before this batch if it is due, and delete the oldest."""
        step, next_step = trainer.global_step, batch_idx + trainer.accumulate_grad_batches
        last = step + 1 == trainer.max_steps or _validates_at(trainer, next_step)
        due = step % self.every_n_steps == 0 or last
        if not due or step == self._saved or not at_step_boundary(trainer, batch_idx):
            return
        self._saved = step
        save_step(trainer, self.directory)
        if trainer.is_global_zero:
            for old in step_files(self.directory)[: -self.keep]:
                old.unlink()


class BestAndLast(ModelCheckpoint):
    """Save the best validation's state, and the last's as ``last.ckpt`` whether or not it is the best.

    A validation before the segmentation is trained is never the best, and of two equal ones the later is.
    Lightning writes the last only where a best was written too, and believes what the disk did not take.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the former best in this folder alone: Lightning deletes it, wherever a file says it is."""
        assert self.dirpath is not None
        folder, former = Path(self.dirpath).resolve(), state_dict["best_k_models"]
        own = {path: score for path, score in former.items() if Path(path).resolve().parent == folder}
        path = next(iter(own), "")
        super().load_state_dict(state_dict | {"best_k_models": own, "kth_best_model_path": path})

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Where a run was killed between the two files, the best that it resumes from is the last too."""
        assert self.dirpath is not None
        best, start = Path(self.dirpath, "best.ckpt"), trainer.ckpt_path
        if trainer.is_global_zero and start and Path(start).resolve() == best.resolve():
            write_whole(best.with_name("last.ckpt"), best.read_bytes())

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is the best so far; an equal one is, for its network has learned longer."""
        equal = current is not None and self.best_model_score is not None and current == self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save both; forget a best that was not written."""
        if trains_segmentation(trainer, pl_module):
            self._save_best(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save the end of a run that validates nothing."""
        if not trainer.enable_validation:
            self._save_last(trainer)

    def _save_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = copy.deepcopy(self.state_dict())
        super().on_validation_end(trainer, pl_module)
        failed: set[str] = getattr(trainer.strategy.checkpoint_io, "failed", set())
        if trainer.strategy.broadcast(self.best_model_path in failed):
            self.load_state_dict(before)

    def _save_last(self, trainer: L.Trainer) -> None:
        assert self.dirpath is not None
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
