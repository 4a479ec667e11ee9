"""Train: ``wsss-afa train +experiment=synthetic`` (or another file of ``conf/experiment``)."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf, open_dict

from wsss_afa.callbacks.binding import RunData, binding_settings
from wsss_afa.callbacks.dashboard import Dashboard
from wsss_afa.callbacks.progress import Summary
from wsss_afa.callbacks.reproducibility import RunRecord
from wsss_afa.callbacks.resume import resume_point
from wsss_afa.callbacks.trainer import fit, make_trainer, on_gpu
from wsss_afa.cli.memory import keep_freed_memory
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError, printable, say
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build, make_recipe


def use_labels(cfg: DictConfig, data: TaggedDataModule, method: Method) -> None:
    """Give the training images the labels of the folder ``labels``, for a method that learns from them.

    Raises:
        UserError: There is a folder but no such method, it does not fit the data, or none is named.
    """
    if method.needs_labels:
        if cfg.labels is None:
            raise UserError("method=supervised has no labels to learn from: name their folder, labels=DIR")
        data.use_labels(cfg.labels)
    elif cfg.labels is not None:
        raise UserError(
            f"labels={cfg.labels}: this run makes its labels itself; add +experiment=second_stage"
        )


def leave_out_missing_logger(cfg: DictConfig) -> None:
    """Do without W&B where it is an experiment's choice and not installed; who asks for it gets an error."""
    asked = any(word.lstrip("+").startswith("logger") for word in HydraConfig.get().overrides.task)
    if cfg.logger and "wandb" in cfg.logger and not asked and find_spec("wandb") is None:
        with open_dict(cfg.logger):
            cfg.logger.pop("wandb")
        say("logger", "metrics.csv alone: wandb is not installed (pip install 'wsss-afa[wandb]')")


def best_score(trainer: L.Trainer) -> float:
    """The monitored score of the best checkpoint, NaN before the first validation."""
    checkpoint = trainer.checkpoint_callback
    score = checkpoint.best_model_score if isinstance(checkpoint, ModelCheckpoint) else None
    return float("nan") if score is None else score.item()


def run(cfg: DictConfig) -> float:
    """Train and return the best monitored score, in [0, 1], for sweeps."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.formatwarning = lambda message, *_, **__: f"warning   {printable(message)}\n"  # no source
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    settings = binding_settings(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if not on_gpu(cfg):
        keep_freed_memory()
    data: TaggedDataModule = instantiate(cfg.data)
    data.setup("fit")
    if cfg.trainer.limit_val_batches:
        data.setup("validate")
    method = build(make_recipe(cfg, data.class_names), trust=None)
    method.optim = instantiate(cfg.optim)
    data.normalize(method.mean, method.std, method.augmentation)
    method.use_tags(torch.from_numpy(data.train_tags))
    use_labels(cfg, data, method)
    content = RunData(data)
    start = resume_point(cfg.resume, folder / "checkpoints", settings, content)
    if cfg.compile:
        method.compile_network()
    if not data.has_masks and cfg.callbacks.best.monitor.startswith("val/miou"):
        cfg.callbacks.best.monitor = "val/agreement"
    leave_out_missing_logger(cfg)
    hydra = HydraConfig.get()
    summary = Summary(str(folder), config, hydra.runtime.choices.data, hydra.overrides.task)
    trainer = make_trainer(
        cfg, RunRecord(str(folder), settings, content), Dashboard(str(folder), config), summary
    )
    fit(trainer, method, data, start)
    return best_score(trainer)
