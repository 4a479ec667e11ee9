"""Evaluate a checkpoint: ``wsss-afa evaluate ckpt=FILE data=voc data.root=… protocol=afa``."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.callbacks.trainer import make_trainer
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.inference.match_data import match_data
from wsss_afa.methods.recipe import load


def run(cfg: DictConfig) -> float:
    """Score the validation split; return the last map's mIoU, or without masks the mAP, in [0, 1]."""
    method = load(cfg.ckpt, cfg.trust)
    data: TaggedDataModule = instantiate(cfg.data)
    match_data(data, method, cfg.ckpt, HydraConfig.get().overrides.task)
    data.setup("validate")
    method.protocol = instantiate(cfg.protocol, mean=method.mean, std=method.std)
    trainer = make_trainer(cfg)
    scores = trainer.validate(method, datamodule=data, verbose=False)[0]
    return next(scores[name] for name in ("val/miou_crf", "val/miou_seg", "val/map_cls") if name in scores)
