"""Evaluate a checkpoint: ``python -m wsss_afa.evaluate ckpt=FILE data=voc data.root=… protocol=afa``."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.methods.recipe import load
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.methods.base import AFALightningModule
from wsss_afa.train import make_trainer
from wsss_afa.errors import UserError


@entry_point("evaluate")
def main(cfg: DictConfig) -> float:
    """Score the validation split; return the last map's mIoU, or without masks the mAP, in [0, 1]."""
    net, labeler, recipe = load(cfg.ckpt)
    data: TaggedDataModule = instantiate(cfg.data)
    if tuple(recipe["class_names"]) != data.class_names:
        known, there = recipe["class_names"], data.class_names
        raise UserError(
            f"ckpt={cfg.ckpt} knows {len(known)} classes ({known[0]}, …), the data has {len(there)} "
            f"({there[0]}, …): evaluate on data of the checkpoint's classes"
        )
    data.setup("validate")
    protocol = instantiate(cfg.protocol, mean=recipe["mean"], std=recipe["std"])
    module = AFALightningModule(net, labeler, recipe, protocol=protocol)
    trainer = make_trainer(cfg)
    scores = trainer.validate(module, datamodule=data, verbose=False)[0]
    return next(scores[name] for name in ("val/miou_crf", "val/miou_seg", "val/map_cls") if name in scores)


if __name__ == "__main__":
    main()
