"""The Trainer of a run, with its callbacks, and a training whose faults end in one line."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import cast

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from wsss_afa.callbacks.checkpoints import DurableCheckpointIO
from wsss_afa.callbacks.faults import RESUME_HINT, explain, tolerate
from wsss_afa.callbacks.processes import guard
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method


def on_gpu(cfg: DictConfig) -> bool:
    """Whether the run uses GPUs."""
    return torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"


def make_trainer(cfg: DictConfig, *callbacks: Callback) -> L.Trainer:
    """Build the Trainer with the configured callbacks and more.

    Raises:
        UserError: its precision is one that affinity and refinement do not have.
    """
    if str(cfg.trainer.precision) in ("64", "64-true"):
        raise UserError("trainer.precision=64-true: affinity and refinement are float32: take 32-true")
    trainer = instantiate(
        cfg.trainer,
        callbacks=[*instantiate(cfg.callbacks).values(), *callbacks],
        logger=tolerate(list(instantiate(cfg.logger).values())) if cfg.logger else False,
        plugins=DurableCheckpointIO(),
        sync_batchnorm=on_gpu(cfg),  # torch has none on CPUs
    )
    guard(trainer, cfg.patience)
    return cast(L.Trainer, trainer)


def fit(trainer: L.Trainer, method: Method, data: TaggedDataModule, start: Path | None) -> None:
    """Train from a checkpoint or from the beginning.

    Raises:
        UserError: The machine failed in a way that its user can mend, or the last checkpoint is not written.
    """
    try:
        trainer.fit(method, datamodule=data, ckpt_path=start, weights_only=True)
    except Exception as error:
        if start is not None and _while_restoring(error):
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            raise UserError(
                f"{start} does not fit this run ({reason}): give another hydra.run.dir"
            ) from error
        parts = trainer.accumulate_grad_batches
        advice = explain(error, data.batch_size, data.crop_size, parts, data.num_workers)
        if advice is None:
            raise
        raise UserError(advice) from error
    failed = [Path(path) for path in getattr(trainer.strategy.checkpoint_io, "failed", ())]
    failed = [path for path in failed if not path.name.startswith("step_")]
    if failed:
        raise UserError(f"{failed[0]} is missing or of an earlier step: make room; {RESUME_HINT}")


def _while_restoring(error: Exception) -> bool:
    """Whether the state of a checkpoint was being handed out."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "checkpoint_connector.py" for frame in frames)
