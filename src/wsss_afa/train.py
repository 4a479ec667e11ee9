"""Train: ``python -m wsss_afa.train +experiment=synthetic`` (or another file of ``conf/experiment``)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from wsss_afa.cli.allocator import keep_freed_memory
from wsss_afa.methods.recipe import Recipe, build
from wsss_afa.callbacks.checkpoints import DurableCheckpointIO, resume_point
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.callbacks.dashboard import Dashboard
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.callbacks.faults import RESUME_HINT, explain, tolerate
from wsss_afa.methods.base import AFALightningModule
from wsss_afa.methods.afa.loss import AFALoss
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.losses.classification import balanced_positive_weight
from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.callbacks.processes import guard
from wsss_afa.callbacks.reproducibility import RunRecord, binding_settings
from wsss_afa.callbacks.summary import Summary
from wsss_afa.types import MEAN, STD
from wsss_afa.errors import UserError


def make_recipe(cfg: DictConfig, class_names: tuple[str, ...]) -> Recipe:
    """Collect what a checkpoint needs to rebuild its network."""
    return Recipe(
        model=cast(dict[str, Any], OmegaConf.to_container(cfg.model, resolve=True)),
        pseudo_label=cast(dict[str, Any], OmegaConf.to_container(cfg.pseudo_label, resolve=True)),
        class_names=list(class_names),
        mean=list(MEAN),
        std=list(STD),
    )


def _on_gpu(cfg: DictConfig) -> bool:
    return torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"


def make_trainer(cfg: DictConfig, *callbacks: Callback) -> L.Trainer:
    """Build the Trainer with the configured callbacks and more.

    Batch statistics are shared between processes where there are GPUs; torch has no synchronised BatchNorm on
    CPUs.
    """
    trainer = instantiate(
        cfg.trainer,
        callbacks=[*instantiate(cfg.callbacks).values(), *callbacks],
        logger=tolerate(list(instantiate(cfg.logger).values())) if cfg.logger else False,
        plugins=DurableCheckpointIO(),
        sync_batchnorm=_on_gpu(cfg),
    )
    guard(trainer, cfg.patience)
    return cast(L.Trainer, trainer)


def make_loss(cfg: DictConfig, data: TaggedDataModule) -> AFALoss | SegmentationLoss:
    """Build the loss; ``loss.positive_weight=balanced`` is resolved with the training tags.

    Raises:
        UserError: The weights are neither null, ``balanced`` nor one for each class.
    """
    if "positive_weight" not in cfg.loss:
        return cast(SegmentationLoss, instantiate(cfg.loss))
    weight = cfg.loss.positive_weight
    if weight == "balanced":
        weight = balanced_positive_weight(torch.from_numpy(data.train_tags)).tolist()
    elif isinstance(weight, str) or (weight is not None and len(weight) != data.num_classes):
        raise UserError(
            f"loss.positive_weight={weight}, need null, balanced or {data.num_classes} numbers, one per class"
        )
    return cast(AFALoss, instantiate(cfg.loss, positive_weight=weight))


def use_labels(cfg: DictConfig, data: TaggedDataModule, labeler: object) -> None:
    """Give the training images the labels of the folder ``labels``, for a labeler that hands them on.

    Raises:
        UserError: There is a folder but no such labeler, it does not fit the data, or none is named.
    """
    if isinstance(labeler, GivenLabels):
        if cfg.labels is None:
            raise UserError("pseudo_label=given has no labels to hand on: name their folder, labels=DIR")
        data.use_labels(cfg.labels)
    elif cfg.labels is not None:
        raise UserError(
            f"labels={cfg.labels}: this run makes its labels itself; add +experiment=second_stage"
        )


def best_score(trainer: L.Trainer) -> float:
    """The monitored score of the best checkpoint, NaN before the first validation."""
    checkpoint = trainer.checkpoint_callback
    score = checkpoint.best_model_score if isinstance(checkpoint, ModelCheckpoint) else None
    return float("nan") if score is None else score.item()


def fit(trainer: L.Trainer, module: AFALightningModule, data: TaggedDataModule, start: Path | None) -> None:
    """Train from a checkpoint or from the beginning.

    Raises:
        UserError: The machine failed in a way that its user can mend, or the last checkpoint is not written.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except Exception as error:
        advice = explain(
            error, data.batch_size, data.crop_size, trainer.accumulate_grad_batches, data.num_workers
        )
        if advice is None:
            raise
        raise UserError(advice) from error
    failed = [Path(path) for path in getattr(trainer.strategy.checkpoint_io, "failed", ())]
    failed = [path for path in failed if not path.name.startswith("step_")]
    if failed:
        raise UserError(f"{failed[0]} is missing or of an earlier step: make room; {RESUME_HINT}")


@entry_point("train")
def main(cfg: DictConfig) -> float:
    """Train and return the best monitored score, in [0, 1], for sweeps."""
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.formatwarning = lambda message, *_, **__: f"warning   {message}\n"  # one line, no source
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    settings = binding_settings(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    start = resume_point(cfg.resume, folder / "checkpoints", settings)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if not _on_gpu(cfg):
        keep_freed_memory()
    data: TaggedDataModule = instantiate(cfg.data)
    data.setup("fit")
    recipe = make_recipe(cfg, data.class_names)
    net, labeler = build(recipe)
    use_labels(cfg, data, labeler)
    if cfg.compile:
        net.backbone.compile()
        net.decoder.compile()
    module = AFALightningModule(net, labeler, recipe, make_loss(cfg, data), instantiate(cfg.optim))
    if not data.has_masks and cfg.callbacks.best.monitor.startswith("val/miou"):
        cfg.callbacks.best.monitor = "val/map_cls"
    hydra = HydraConfig.get()
    summary = Summary(str(folder), config, hydra.runtime.choices.data, hydra.overrides.task)
    trainer = make_trainer(cfg, RunRecord(str(folder), settings), Dashboard(str(folder), config), summary)
    fit(trainer, module, data, start)
    return best_score(trainer)


if __name__ == "__main__":
    main()
