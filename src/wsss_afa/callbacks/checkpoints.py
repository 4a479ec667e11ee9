"""Checkpoints that survive: written whole or not at all, checked, at every few steps, and found again.

A checkpoint is taken between two steps: the optimiser has stepped, the step's numbers are logged, its
validation, if one was due, is over. A run resumed from it repeats the unbroken run's every bit.
"""

from __future__ import annotations

import copy
import io
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.methods.base import RECIPE_KEY

SETTINGS_KEY = "wsss_afa_settings"
"""Where in the checkpoint the settings lie that a resumed run must share."""

_PARTIAL = ".partial"


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
            _write(Path(path), buffer.getbuffer())
            self.failed.discard(str(path))
        except (OSError, ValueError) as error:
            self.failed.add(str(path))
            folder, what = Path(path).parent, error.strerror if isinstance(error, OSError) else error
            free = shutil.disk_usage(folder).free / 2**20 if folder.is_dir() else 0.0
            rank_zero_warn(f"{path}: not written, training goes on without it ({what}; {free:.0f} MiB free)")


def _write(path: Path, content: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        read_checked(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # the new name too
    os.close(folder)


def read_checked(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint, its tensors still on the disk, once every byte's checksum was right.

    A file that is torn, altered, or no checkpoint of a training run raises ValueError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the zip and pickle readers raise nearly anything on altered bytes
        raise ValueError(f"cannot be read: {(str(error) or repr(error)).splitlines()[0]}") from error
    if broken is not None:
        raise ValueError(f"checksum of {broken} is wrong")
    if not isinstance(content, dict) or not {RECIPE_KEY, "global_step", "loops"} <= set(content):
        raise ValueError("no checkpoint of a training run")
    return content


def resume_point(resume: str | None, directory: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint that a run starts from, announced in one line; None where it starts anew.

    UserError is raised where the file is missing or damaged, ``auto`` finds a run with other settings, or the
    directory holds checkpoints from beyond the starting point, which this run would mix with its own.

    Args:
        resume: ``auto`` for the newest intact checkpoint in the directory, a file, or None.
        directory: Where this run writes its checkpoints.
        settings: What the checkpoint's run must have shared, by dotted name.
    """
    found = _intact(directory)
    path: Path | None = None
    content: Mapping[str, Any] = {"global_step": -1}
    if resume == "auto" and found:
        path, content = found[-1]
    elif resume not in ("auto", None):
        path, content = Path(resume), _read_named(Path(resume))
    if later := [other for other, its in found if its["global_step"] > content["global_step"]]:
        what = f"{later[-1]} belongs to a run that went beyond resume={resume or 'null'}: resume=auto"
        raise UserError(f"{what} goes on with it; else give another hydra.run.dir, or move it away")
    if path is not None:
        _compare(resume == "auto", path, content, settings)
        rank_zero_only(print)(f"resuming  from step {content['global_step']}: {path}", flush=True)
    return path


def _intact(directory: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    found = []
    for path in sorted(directory.glob("*.ckpt")):
        try:
            found.append((path, read_checked(path)))
        except ValueError as error:
            rank_zero_warn(f"{path} is damaged and left out, renamed to *.damaged ({error})")
            rank_zero_only(path.replace)(f"{path}.damaged")
    return sorted(found, key=lambda item: item[1]["global_step"])


def _read_named(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"resume={path}: no such file; give auto, null or a .ckpt of a training run")
    try:
        return read_checked(path)
    except ValueError as error:
        raise UserError(f"resume={path}: {error}; resume=auto takes the newest intact one") from error


def _compare(auto: bool, path: Path, content: Mapping[str, Any], settings: dict[str, Any]) -> None:
    theirs = content.get(SETTINGS_KEY, settings)
    names = [name for name in sorted(settings | theirs) if settings.get(name) != theirs.get(name)]
    changed = [f"{name}={settings.get(name)} (was {theirs.get(name)})" for name in names]
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    message = f"{path} is of a run with other settings: {', '.join(changed[:5])}{more}"
    if changed and auto:
        raise UserError(f"{message}; give another hydra.run.dir, or resume={path} to go on all the same")
    if changed:
        rank_zero_warn(f"{message}; the resumed run is not the run that it was")


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
            for partial in self.directory.glob(f"*{_PARTIAL}"):
                partial.unlink()

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
            for old in sorted(self.directory.glob("step_*.ckpt"))[: -self.keep]:
                old.unlink()


class BestAndLast(ModelCheckpoint):
    """Save the best validation's state, and the last's as ``last.ckpt`` whether or not it is the best.

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

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save both; forget a best that was not written."""
        before = copy.deepcopy(self.state_dict())
        super().on_validation_end(trainer, pl_module)
        failed: set[str] = getattr(trainer.strategy.checkpoint_io, "failed", set())
        if trainer.strategy.broadcast(self.best_model_path in failed):
            self.load_state_dict(before)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save the end of a run that validates nothing."""
        if not trainer.enable_validation:
            self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        assert self.dirpath is not None
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt")
