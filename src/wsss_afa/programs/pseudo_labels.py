"""Write pseudo labels of a training set: ``wsss-afa pseudo_labels ckpt=FILE data=… out=DIR``.

With ``sweep_thresholds=true`` nothing is written but the mIoU of each background score, on images with masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from wsss_afa.data.coco_labels import COCO_FILE
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.label_folder import LabelFolder
from wsss_afa.data.sampler import SampleSet, say_skipped
from wsss_afa.errors import UserError, say
from wsss_afa.inference.label_source import SEGMENTATION, LabelSource
from wsss_afa.inference.label_writer import LabelWriter, WholeImages
from wsss_afa.inference.match_data import match_data
from wsss_afa.inference.threshold_sweep import ThresholdSweep, write_sweep
from wsss_afa.methods.recipe import load
from wsss_afa.models.weights import weights_sha256

_LOADING = (
    "batch_size", "crop_size", "num_workers", "scale", "flip", "seed", "balanced", "skip_broken", "window",
)  # fmt: skip
"""Settings of data that no label depends on."""


def choose_images(data: TaggedDataModule, split: str, sweep: bool) -> SampleSet:
    """The images to label; those of ``val`` have masks, if there are any."""
    if split not in ("train", "val"):
        raise UserError(f"split={split} is not known; need train or val")
    if sweep and (split == "train" or not data.has_masks):
        raise UserError(
            "sweep_thresholds=true compares with masks, which training sets never have: set split=val, on "
            "data that has masks (VOC's training images: split=val data.val_split=train)"
        )
    return data.make_set(split)


def describe(cfg: DictConfig, source: LabelSource, scores: list[float]) -> dict[str, Any]:
    """What labels depend on, in plain containers."""
    data = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    segments, crf = cfg.source == SEGMENTATION, source.protocol.crf
    return {
        "source": cfg.source,
        "background": None if segments else scores,
        "protocol": source.protocol.extra_repr() if segments else None,
        "crf": None if crf is None else crf.extra_repr(),
        "checkpoint_sha256": weights_sha256(cfg.ckpt),
        "split": cfg.split,
        "data": {key: value for key, value in data.items() if key not in _LOADING},
        "class_names": source.method.recipe["class_names"],
    }


def pass_over(images: WholeImages, module: L.LightningModule, cfg: DictConfig) -> L.Trainer:
    """Hand every image to a module once, and say which could not be read; return the Trainer that did it."""
    callbacks = list(instantiate(cfg.callbacks).values())
    trainer: L.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=False)
    trainer.predict(module, datamodule=images, return_predictions=False)
    say_skipped(images.broken)
    return trainer


def write(
    cfg: DictConfig, source: LabelSource, scores: list[float], images: WholeImages, of: dict[str, Any]
) -> float:
    """Write what labels the folder lacks; return how many it has then."""
    if "png" not in cfg.format or set(cfg.format) - {"png", "coco"}:
        raise UserError(f"format={cfg.format}: need [png], or [png, coco], which makes the one of the other")
    folder, coco = LabelFolder(cfg.out, of), "coco" in cfg.format
    before = len(folder.names())
    trainer = pass_over(images, LabelWriter(source, scores, folder, coco, of["class_names"]), cfg)
    count = len(folder.names())
    if trainer.is_global_zero:
        say("labels", f"{folder.root}: {count} PNGs" + f", {before} of them from before" * (before > 0))
        if coco:
            say("labels", folder.root / COCO_FILE)
    return float(count)


def sweep(
    cfg: DictConfig, source: LabelSource, scores: list[float], images: WholeImages, of: dict[str, Any]
) -> float:
    """Score every threshold, write and print the results; return the best mIoU, in [0, 1]."""
    if cfg.source == SEGMENTATION:
        what = "sweep_thresholds=true: source=seg has no background score to vary"
        raise UserError(f"{what}; wsss-afa evaluate scores it")
    if not cfg.thresholds or not all(0 <= threshold <= 1 for threshold in cfg.thresholds):
        raise UserError(f"thresholds={cfg.thresholds}: need one or more numbers in [0, 1]")
    module = ThresholdSweep(source, cfg.thresholds, scores, of["class_names"])
    trainer = pass_over(images, module, cfg)
    if trainer.is_global_zero:
        write_sweep(Path(HydraConfig.get().runtime.output_dir), module.results, of, Console())
    return float(module.results["best"]["miou"]) / 100


def run(cfg: DictConfig) -> float:
    """Write labels and return their number; with ``sweep_thresholds`` return the best mIoU."""
    method = load(cfg.ckpt, cfg.trust)
    data: TaggedDataModule = instantiate(cfg.data)
    match_data(data, method, cfg.ckpt, HydraConfig.get().overrides.task)
    chosen = choose_images(data, cfg.split, cfg.sweep_thresholds)
    images = WholeImages(chosen, data.eval_transform, data.num_workers, data.skip_broken)
    crf = cfg.dense_crf if cfg.crf else None
    protocol = instantiate(cfg.protocol, crf=crf, mean=method.mean, std=method.std)
    source = LabelSource(method, cfg.source, protocol)
    scores = source.backgrounds(cfg.background)
    run = sweep if cfg.sweep_thresholds else write
    return run(cfg, source, scores, images, describe(cfg, source, scores))
