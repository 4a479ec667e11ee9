"""Write pseudo labels of a training set: ``wsss-afa pseudo_labels ckpt=FILE data=… out=DIR``.

A method that needs no training stands in the place of the checkpoint: ``method=clip_es``.
With ``sweep_thresholds=true`` nothing is written but the mIoU of each background score, on images with masks,
with ``choose_threshold=true`` but what can be told without masks.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.label_folder import LabelFolder
from wsss_afa.data.own_output import open_folder
from wsss_afa.data.sampler import say_skipped
from wsss_afa.errors import UserError, say
from wsss_afa.inference.formats.writers import check_formats
from wsss_afa.inference.label_source import SEGMENTATION, LabelSource
from wsss_afa.inference.label_writer import LabelWriter, WholeImages, choose_images
from wsss_afa.inference.open_method import STATIC, open_method
from wsss_afa.inference.threshold_choice import ThresholdChoice
from wsss_afa.inference.threshold_sweep import ThresholdSweep, check_thresholds
from wsss_afa.methods.recipe import make_recipe
from wsss_afa.methods.towers import pin
from wsss_afa.models.weights import weights_sha256

_LOADING = (
    "batch_size", "crop_size", "num_workers", "scale", "flip", "seed", "balanced", "skip_broken", "window",
)  # fmt: skip
"""Settings of data that no label depends on."""


def describe(cfg: DictConfig, source: LabelSource, scores: list[float]) -> dict[str, Any]:
    """What labels depend on, in plain containers."""
    data = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    crf, recipe = source.protocol.crf, pin(source.method.recipe, source.method.net)
    return {
        "source": source.source,
        "background": scores if source.has_background else None,
        "protocol": source.protocol.extra_repr() if source.source == SEGMENTATION else None,
        "crf": None if crf is None else crf.extra_repr(),
        **({"untrained": recipe} if cfg.ckpt is None else {"checkpoint_sha256": weights_sha256(cfg.ckpt)}),
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
    check_formats(formats := list(cfg.format), of["class_names"])
    folder = LabelFolder(open_folder(cfg.out), of)
    before, start = len(folder.names()), time.monotonic()
    writer = LabelWriter(source, scores, folder, formats, of["class_names"], images.files)
    trainer = pass_over(images, writer, cfg)
    count = len(folder.names())
    if trainer.is_global_zero:
        pace = f", {(count - before) / (time.monotonic() - start):.2g} images a second" * (count > before)
        kept = f", {before} of them from before" * (before > 0)
        say("labels", f"{folder.root}: {count} PNGs{kept}{pace}")
    return float(count)


def compare(
    cfg: DictConfig, source: LabelSource, scores: list[float], images: WholeImages, of: dict[str, Any]
) -> float:
    """Compare background scores, write what is found; return the best mIoU, or the score suggested."""
    chooses = cfg.choose_threshold
    check_thresholds(source, cfg.thresholds, "choose_threshold" if chooses else "sweep_thresholds")
    module: ThresholdChoice | ThresholdSweep = ThresholdChoice(source, cfg.thresholds)
    if not chooses:
        module = ThresholdSweep(source, cfg.thresholds, scores, of["class_names"])
    if pass_over(images, module, cfg).is_global_zero:
        module.write(Path(HydraConfig.get().runtime.output_dir), of, Console())
    return module.outcome


def run(cfg: DictConfig) -> float:
    """Write labels and return their number, or what `compare` does."""
    if cfg.sweep_thresholds and cfg.choose_threshold:
        raise UserError("sweep_thresholds=true needs masks, choose_threshold=true does without: set one")
    data: TaggedDataModule = instantiate(cfg.data)
    recipe = None if cfg.get("method") is None else make_recipe(cfg, data.class_names)
    method = open_method(cfg.ckpt, cfg.trust, recipe, data, HydraConfig.get().overrides.task)
    chosen = choose_images(data, cfg.split, cfg.sweep_thresholds)
    images = WholeImages(chosen, data.eval_transform, data.num_workers, data.skip_broken)
    crf = cfg.dense_crf if cfg.crf else None
    protocol = instantiate(cfg.protocol, crf=crf, mean=method.mean, std=method.std)
    source = LabelSource(method, cfg.source or (STATIC if cfg.ckpt is None else "affinity"), protocol)
    scores = source.backgrounds(cfg.background)
    run = compare if cfg.sweep_thresholds or cfg.choose_threshold else write
    return run(cfg, source, scores, images, describe(cfg, source, scores))
