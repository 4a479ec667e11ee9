"""What goes wrong while training, and what is done about it: signals, numbers that are none, dead helpers."""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities import rank_zero_warn
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor
from torch.optim import Optimizer

from wsss_afa.callbacks.checkpoints import at_step_boundary, save_step
from wsss_afa.errors import UserError

EXIT_STOPPED, EXIT_INTERRUPTED = 75, 130  # EX_TEMPFAIL of sysexits.h, which not every system names
"""Exit codes after SIGTERM or SIGUSR1 (stopped on request, to be started again), and after Ctrl-C."""
RESUME_HINT = "the same command with hydra.run.dir=… of this run then goes on from its newest checkpoint"
"""Ends the line of a fault that a run survives."""

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
"""Those that stop a run; Windows has no SIGUSR1."""
_SEVERED = re.compile(
    r"^Dist\w+Error|gloo/transport|NCCL|pair closure|Application timeout|Socket Timeout"
    r"|Connection (reset|closed|refused)|[Tt]imed out"
)
"""How torch and its libraries say that an exchange between processes came to nothing."""


class Interruption(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C: finish the step, save it, exit; under SLURM, SIGUSR1 requeues the job.

    Lightning's own handlers save in the middle of a step, or validate first. A second Ctrl-C stops at once.
    The checkpoint goes into ``directory``.
    """

    def __init__(self, directory: str):
        self.directory = Path(directory)
        self._received: signal.Signals | None = None

    def on_train_start(self, *_: Any) -> None:
        """Take the signals over; Lightning puts the former handlers back in the end."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Between two steps: save and stop, if any process was asked to."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._asked(trainer):
            if trainer.global_step and at_step_boundary(trainer, batch_idx):
                save_step(trainer, self.directory)
            self._stop(trainer)

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Do not begin a validation: the step before its own is saved."""
        if self._asked(trainer):
            self._stop(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Break a validation off; processes cannot agree on it here, as they may have unequal shares."""
        if trainer.world_size == 1 and self._asked(trainer):
            self._stop(trainer)

    def _asked(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)

    def _stop(self, trainer: L.Trainer) -> NoReturn:
        received = self._received or signal.SIGTERM  # where another process was asked
        if trainer.is_global_zero:
            where = f"at step {trainer.global_step} of {trainer.max_steps} by {received.name}"
            again = f"the same command with hydra.run.dir={self.directory.parent} goes on"
            print(f"stopped   {where}: {again}", flush=True)
            if received.name == "SIGUSR1" and SLURMEnvironment.detect():
                _requeue()
        raise SystemExit(EXIT_INTERRUPTED if received == signal.SIGINT else EXIT_STOPPED)


def _requeue() -> None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"scontrol requeue {job} failed ({error}): submit the job again")


class FiniteLoss(Callback):
    """Stop at a loss or gradient that is NaN or infinite, once ``skip_nan_steps`` steps were left out for it.

    What made it, the batch and the network before the step, lies in ``nonfinite_*.pt`` of the run's directory
    afterwards. A step that is left out changes no weight; the learning rate's schedule counts it.
    """

    def __init__(self, directory: str, skip_nan_steps: int = 0):
        self.directory, self.skip_nan_steps, self.skipped = Path(directory), skip_nan_steps, 0
        self._batch: Any = None
        self._culprit: tuple[str, Any] | None = None

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, _: Any, loss: Tensor) -> None:
        """Look at the loss and find the term to blame."""
        if self._culprit is None and not loss.isfinite():
            values = {name: value.item() for name, value in trainer.callback_metrics.items()}
            terms = [name for name in values if name.startswith("train/loss_")]
            bad = [name for name in terms if not math.isfinite(values[name])]
            named = (f"{name.removeprefix('train/')}={values[name]}" for name in bad)
            self._culprit = ", ".join(named) or f"loss={loss.item()}", self._batch

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Keep what is not finite from the weights."""
        if self._culprit is None and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._culprit = self._bad_gradient(pl_module)  # with a scaler an overflow is its daily work
        if not trainer.strategy.reduce_boolean_decision(self._culprit is not None, all=False):
            return
        what, batch = self._culprit or ("a loss in another process", self._batch)
        self._culprit, self.skipped = None, self.skipped + 1
        path = self._keep(trainer, pl_module, what, batch)
        poisoned = [name for name, buffer in pl_module.named_buffers() if not buffer.isfinite().all()]
        if self.skipped > self.skip_nan_steps or poisoned:
            hint = "or leave such steps out with callbacks.finite.skip_nan_steps=10"
            hint += f" (but {poisoned[0]} is not finite either)" if poisoned else ""
            where = f"step {trainer.global_step}: {what}; batch and network are in {path}"
            raise UserError(f"{where}: lower optim.lr, try trainer.precision=32-true, {hint}")
        count = f"{self.skipped} of {self.skip_nan_steps}"
        rank_zero_warn(f"step {trainer.global_step} left out ({count}): {what}; see {path}")
        optimizer.zero_grad(set_to_none=True)  # AdamW passes over parameters without a gradient

    def _bad_gradient(self, module: L.LightningModule) -> tuple[str, Any] | None:
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        if math.isfinite(torch.nn.utils.get_total_norm(list(gradients.values())).item()):
            return None
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        return f"gradient of {[*bad, 'all parameters together'][0]} is not finite", self._batch

    def _keep(self, trainer: L.Trainer, module: L.LightningModule, what: str, batch: Any) -> Path:
        path = self.directory / f"nonfinite_step_{trainer.global_step:06d}_process_{trainer.global_rank}.pt"
        content = {"what": what, "step": trainer.global_step, "batch": batch, "state": module.state_dict()}
        torch.save(content, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
        return path

    def state_dict(self) -> dict[str, Any]:
        """Steps left out so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]


def tolerate(loggers: list[Logger]) -> list[Logger]:
    """Loggers that warn once instead of stopping the run; one that cannot begin is left out."""
    started = []
    for logger in loggers:
        try:
            if not isinstance(logger, CSVLogger):  # which deletes its file when it starts
                _ = logger.experiment  # type: ignore[attr-defined]
        except Exception as error:
            rank_zero_warn(f"{type(logger).__name__} cannot start, training goes on without it: {error}")
            continue
        for name in ("log_metrics", "log_hyperparams", "save", "finalize", "after_save_checkpoint"):
            setattr(logger, name, _warn_once(getattr(logger, name), type(logger).__name__))
        started.append(logger)
    return started


def _warn_once(call: Callable[..., None], owner: str) -> Callable[..., None]:
    warned = False

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> None:
        nonlocal warned
        try:
            call(*args, **kwargs)
        except Exception as error:
            if not warned:
                what = f"{owner}.{call.__name__} fails, training goes on"
                rank_zero_warn(f"{what}: {type(error).__name__}: {error}")
            warned = True

    return guarded


def explain(error: Exception, batch_size: int, crop_size: int, accumulation: int, workers: int) -> str | None:
    """One line for a fault of the machine's that ended training, None for a bug.

    Batch size and accumulation are images and micro-batches per step, crop size is a side in pixels, workers
    are the loader processes of each training process.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of memory on the GPU with data.batch_size={batch_size} in {accumulation} parts and "
            f"data.crop_size={crop_size}: try backbone.activation_checkpointing=true (a third less, "
            f"measured on CPUs) or trainer.precision=bf16-mixed ({RESUME_HINT}), or begin anew with "
            f"trainer.accumulate_grad_batches={2 * accumulation} (the same step in smaller parts: half) or "
            f"data.crop_size={crop_size * 3 // 4 // 32 * 32} (two fifths less)"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({error}): make room; {RESUME_HINT}"
    if match := re.search(r"DataLoader worker \(pid.*", f"{text}\n{error.__cause__}"):  # a signal raises it
        what = f"{match[0].strip().rstrip('.')}: loader processes mostly die for want of memory"
        hint = f"try fewer than data.num_workers={workers}, or 0 to see an error of its own"
        return f"{what}: {hint}; {RESUME_HINT}"
    if isinstance(error, MisconfigurationException):
        return f"trainer: {' '.join(text.split())}"
    if isinstance(error, ValueError) and _comes_from(error, "torch/optim/"):
        return f"optim: {' '.join(text.split())}"
    if isinstance(error, RuntimeError) and _SEVERED.search(type(error).__name__ + text):
        what = f"another process is gone, stuck or slower than patience allows ({text.splitlines()[0]})"
        return f"{what}: look for a line of its own; {RESUME_HINT}"
    return None


def _comes_from(error: Exception, folder: str) -> bool:
    """Whether a file below such a folder raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and folder in frames[-1].filename.replace(os.sep, "/")
