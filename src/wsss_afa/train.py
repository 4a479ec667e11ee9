"""Train: ``python -m wsss_afa.train +experiment=synthetic`` (or ``voc``, ``coco``, ``folder``)."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from wsss_afa.checkpoint import Recipe, build
from wsss_afa.cli import entry_point
from wsss_afa.data.datamodule import AFADataModule
from wsss_afa.lightning_module import AFALightningModule
from wsss_afa.losses import AFALoss, balanced_positive_weight
from wsss_afa.types import MEAN, STD, UserError


def make_recipe(cfg: DictConfig, class_names: tuple[str, ...]) -> Recipe:
    """Collect what a checkpoint needs to rebuild its network."""
    return Recipe(
        model=cast(dict[str, Any], OmegaConf.to_container(cfg.model, resolve=True)),
        pseudo_label=cast(dict[str, Any], OmegaConf.to_container(cfg.pseudo_label, resolve=True)),
        class_names=list(class_names),
        mean=list(MEAN),
        std=list(STD),
    )


def make_trainer(cfg: DictConfig) -> L.Trainer:
    """Build the Trainer; batch statistics are shared between processes where there are GPUs.

    torch has no synchronised BatchNorm on CPUs.
    """
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator not in ("cpu",)
    callbacks = list(instantiate(cfg.callbacks).values())
    loggers = list(instantiate(cfg.logger).values()) if cfg.logger else False
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, sync_batchnorm=on_gpu)
    return cast(L.Trainer, trainer)


def make_loss(cfg: DictConfig, data: AFADataModule) -> AFALoss:
    """Build the loss; ``loss.positive_weight=balanced`` is resolved with the training tags.

    Raises:
        UserError: The weights are neither null, ``balanced`` nor one for each class.
    """
    weight = cfg.loss.positive_weight
    if weight == "balanced":
        weight = balanced_positive_weight(torch.from_numpy(data.train_tags)).tolist()
    elif isinstance(weight, str) or (weight is not None and len(weight) != data.num_classes):
        raise UserError(
            f"loss.positive_weight={weight}, need null, balanced or {data.num_classes} numbers, one per class"
        )
    return cast(AFALoss, instantiate(cfg.loss, positive_weight=weight))


def best_score(trainer: L.Trainer) -> float:
    """The monitored score of the best checkpoint, NaN before the first validation."""
    checkpoint = trainer.checkpoint_callback
    score = checkpoint.best_model_score if isinstance(checkpoint, ModelCheckpoint) else None
    return float("nan") if score is None else score.item()


@entry_point("train")
def main(cfg: DictConfig) -> float:
    """Train and return the best monitored score, in [0, 1], for sweeps."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data: AFADataModule = instantiate(cfg.data)
    data.setup("fit")
    recipe = make_recipe(cfg, data.class_names)
    net, labeler = build(recipe)
    if cfg.compile:
        net.backbone.compile()
        net.decoder.compile()
    module = AFALightningModule(net, labeler, recipe, make_loss(cfg, data), instantiate(cfg.optim))
    if not data.has_masks and cfg.callbacks.best.monitor.startswith("val/miou"):
        cfg.callbacks.best.monitor = "val/map_cls"
    trainer = make_trainer(cfg)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    return best_score(trainer)


if __name__ == "__main__":
    main()
