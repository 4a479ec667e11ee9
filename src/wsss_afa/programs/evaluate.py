"""Evaluate a checkpoint: ``wsss-afa evaluate ckpt=FILE data=voc data.root=… protocol=afa``.

A method that needs no training stands in the place of the checkpoint: ``method=clip_es``.
"""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.callbacks.trainer import make_trainer
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError
from wsss_afa.inference.open_method import STATIC, open_method
from wsss_afa.methods.recipe import make_recipe


def run(cfg: DictConfig) -> float:
    """Score the validation split; return the last map's mIoU, without masks the agreement with the tags.

    Without a checkpoint the mIoU is of the labels that need no training.
    """
    if cfg.trainer.limit_val_batches == 0:
        raise UserError("trainer.limit_val_batches=0: nothing would be evaluated; leave it out")
    data: TaggedDataModule = instantiate(cfg.data)
    recipe = None if cfg.get("method") is None else make_recipe(cfg, data.class_names)
    method = open_method(cfg.ckpt, cfg.trust, recipe, data, HydraConfig.get().overrides.task)
    last = ["val/miou_crf", "val/miou_seg", "val/agreement"]
    if cfg.ckpt is None:
        method.scored, cfg.ckpt = (STATIC,), f"method={HydraConfig.get().runtime.choices.method}"
        last = [f"val/miou_{STATIC}", "val/agreement"]
    data.setup("validate")
    method.protocol = instantiate(cfg.protocol, mean=method.mean, std=method.std)
    trainer = make_trainer(cfg)
    scores = trainer.validate(method, datamodule=data, verbose=False)[0]
    return next(scores[name] for name in last if name in scores)
