"""Write pseudo labels of a training set: ``python -m wsss_afa.pseudo_labels ckpt=FILE data=… out=DIR``.

With ``sweep_thresholds=true`` nothing is written but the mIoU of each background score, on images with masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from wsss_afa.methods.recipe import Recipe, load
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.coco_labels import COCO_FILE, write_coco
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.label_folder import LabelFolder
from wsss_afa.data.sampler import Augmented, DrawLoader, SampleSet, say_skipped
from wsss_afa.data.transforms import EvalTransform
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.inference.label_source import SOURCES, LabelSource, merge_labels
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.inference.threshold_sweep import ThresholdSweep, print_sweep, write_sweep
from wsss_afa.types import Batch
from wsss_afa.errors import UserError
from wsss_afa.visualize import save_label

_STAGES = {"cam": "cam", "par": "par", "affinity": "afa"}
_LOADING = (
    "batch_size",
    "crop_size",
    "num_workers",
    "scale",
    "flip",
    "seed",
    "balanced",
    "skip_broken",
    "window",
)
"""Settings of data that no label depends on."""


class WholeImages(L.LightningDataModule):
    """Images of native size, one by one: every ``world_size``-th for each process, so that none comes twice.

    Args:
        images: All of them.
        num_workers: Loader processes of each process.
        skip_broken: Whether images that cannot be read are left out.
    """

    def __init__(self, images: SampleSet, num_workers: int, skip_broken: bool):
        super().__init__()
        self.broken: set[str] = set()
        self._images = Augmented(images, EvalTransform(), skip_broken)
        self._num_workers = num_workers

    def predict_dataloader(self) -> Share:
        """This process's share."""
        assert self.trainer is not None
        share = range(self.trainer.global_rank, len(self._images), self.trainer.world_size)
        return Share(DrawLoader(self._images, [[i] for i in share], self._num_workers, self.broken))


class Share:
    """A loader that Lightning takes as it is: for predictions it would rebuild a DataLoader."""

    def __init__(self, loader: DrawLoader):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._loader)


class LabelWriter(L.LightningModule):
    """Write the label of every image that has none yet, for ``Trainer.predict``.

    Args:
        net: the network.
        source: makes the labels.
        backgrounds: one background score, or low and high.
        folder: where the labels go.
        coco: whether all of them are written to COCO's JSON at the end, too.
        class_names: C foreground classes.
    """

    def __init__(
        self,
        net: AFANet,
        source: LabelSource,
        backgrounds: Sequence[float],
        folder: LabelFolder,
        coco: bool,
        class_names: Sequence[str],
    ):
        super().__init__()
        self.net, self.source, self.backgrounds = net, source, backgrounds
        self.folder, self.coco, self.class_names = folder, coco, class_names

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write one image's label, or keep the one that is there; return its name."""
        path = self.folder.path(batch["name"][0])
        if not path.exists():
            label = merge_labels(self.source(self.net, batch, self.backgrounds))
            save_label(label[0].cpu().numpy().astype(np.uint8), path)
        return batch["name"]

    def on_predict_end(self) -> None:
        """Once all processes are done, collect the labels."""
        self.trainer.strategy.barrier()
        if self.coco and self.trainer.is_global_zero:
            write_coco(self.folder, self.class_names)


def choose_images(data: TaggedDataModule, split: str, sweep: bool) -> SampleSet:
    """The images to label; those of ``val`` have masks, if there are any.

    Raises:
        UserError: There is no such split, or a sweep would have no masks.
    """
    if split not in ("train", "val"):
        raise UserError(f"split={split} is not known; need train or val")
    if sweep and (split == "train" or not data.has_masks):
        raise UserError(
            "sweep_thresholds=true compares with masks, which training sets never have: set split=val, on "
            "data that has masks (VOC's training images: split=val data.val_split=train)"
        )
    return data.make_train_set() if split == "train" else data.make_val_set()


def make_labeler(recipe: Recipe, source: str) -> PseudoLabeler | GivenLabels:
    """Build the checkpoint's labeler with all parts that a source needs, whatever stage it was trained at.

    Raises:
        UserError: The source is not known, or the checkpoint has not learnt what it needs.
    """
    if source not in SOURCES:
        raise UserError(f"source={source} is not known; need one of {', '.join(SOURCES)}")
    config = recipe["pseudo_label"]
    if source == "seg":
        return cast(GivenLabels, instantiate(config))
    if not config["_target_"].endswith(".PseudoLabeler"):
        raise UserError(f"source={source}: this checkpoint has learnt segmentation alone; set source=seg")
    if source == "affinity" and config.get("stage", "afa") != "afa":
        raise UserError(
            f"source=affinity: this checkpoint was trained with stage={config['stage']}, which teaches no "
            "affinity; set source=par or cam, or use a checkpoint of pseudo_label=afa"
        )
    return cast(PseudoLabeler, instantiate(config, stage=_STAGES[source]))


def choose_scores(
    value: float | ListConfig | None, source: str, labeler: PseudoLabeler | GivenLabels
) -> list[float]:
    """Background scores: one, or low and high; the checkpoint's where none is given.

    Raises:
        UserError: They are not in [0, 1], not ascending, or the source has none.
    """
    if source == "seg":
        if value is not None:
            raise UserError(f"background={value}: source=seg has no background score; leave it out")
        return [0.0]  # one label; it does not depend on the score
    if value is None:
        assert isinstance(labeler, PseudoLabeler)
        return [labeler.low, labeler.high]
    scores = [float(score) for score in value] if isinstance(value, ListConfig) else [float(value)]
    if len(scores) not in (1, 2) or not 0 <= scores[0] <= scores[-1] <= 1:
        raise UserError(f"background={value}: need a number in [0, 1], or [low, high] with low ≤ high")
    return scores


def describe(cfg: DictConfig, recipe: Recipe, source: LabelSource, scores: list[float]) -> dict[str, Any]:
    """What labels depend on, in plain containers."""
    data = cast(dict[str, Any], OmegaConf.to_container(cfg.data, resolve=True))
    with Path(cfg.ckpt).open("rb") as file:
        checkpoint = hashlib.file_digest(file, "sha256").hexdigest()
    crf = source.protocol.crf
    return {
        "source": cfg.source,
        "background": None if cfg.source == "seg" else scores,
        "protocol": source.protocol.extra_repr() if cfg.source == "seg" else None,
        "crf": None if crf is None else crf.extra_repr(),
        "checkpoint_sha256": checkpoint,
        "split": cfg.split,
        "data": {key: value for key, value in data.items() if key not in _LOADING},
        "class_names": recipe["class_names"],
    }


def pass_over(images: WholeImages, module: L.LightningModule, cfg: DictConfig) -> L.Trainer:
    """Hand every image to a module once, and say which could not be read; return the Trainer that did it."""
    callbacks = list(instantiate(cfg.callbacks).values())
    trainer: L.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=False)
    trainer.predict(module, datamodule=images, return_predictions=False)
    say_skipped(images.broken)
    return trainer


def write(
    cfg: DictConfig,
    net: AFANet,
    source: LabelSource,
    scores: list[float],
    images: WholeImages,
    of: dict[str, Any],
) -> float:
    """Write what labels the folder lacks; return how many it has then.

    Raises:
        UserError: A format is not known, or the folder has labels of other settings.
    """
    if "png" not in cfg.format or set(cfg.format) - {"png", "coco"}:
        raise UserError(f"format={cfg.format}: need [png], or [png, coco], which makes the one of the other")
    folder = LabelFolder(cfg.out, of)
    there = len(folder.names())
    writer = LabelWriter(net, source, scores, folder, "coco" in cfg.format, of["class_names"])
    trainer = pass_over(images, writer, cfg)
    count = len(folder.names())
    if trainer.is_global_zero:
        print(f"labels    {folder.root}: {count} PNGs" + (f", {there} of them from before" if there else ""))
        if writer.coco:
            print(f"labels    {folder.root / COCO_FILE}")
    return float(count)


def sweep(
    cfg: DictConfig,
    net: AFANet,
    source: LabelSource,
    scores: list[float],
    images: WholeImages,
    of: dict[str, Any],
) -> float:
    """Score every threshold, write and print the results; return the best mIoU, in [0, 1].

    Raises:
        UserError: There is nothing to vary, or a threshold is out of its range.
    """
    if cfg.source == "seg":
        raise UserError(
            "sweep_thresholds=true: source=seg has no background score to vary; "
            "python -m wsss_afa.evaluate scores it"
        )
    if not cfg.thresholds or not all(0 <= threshold <= 1 for threshold in cfg.thresholds):
        raise UserError(f"thresholds={cfg.thresholds}: need one or more numbers in [0, 1]")
    module = ThresholdSweep(net, source, cfg.thresholds, scores, of["class_names"])
    trainer = pass_over(images, module, cfg)
    if trainer.is_global_zero:
        directory = Path(HydraConfig.get().runtime.output_dir)
        write_sweep(directory, module.results, of)
        print_sweep(module.results, Console())
        print(f"sweep     {directory / 'sweep.json'}")
        print(f"curve     {directory / 'sweep.png'}")
    return float(module.results["best"]["miou"]) / 100


@entry_point("pseudo_labels")
def main(cfg: DictConfig) -> float:
    """Write labels and return their number; with ``sweep_thresholds`` return the best mIoU."""
    net, _, recipe = load(cfg.ckpt)
    labeler = make_labeler(recipe, cfg.source)
    scores = choose_scores(cfg.background, cfg.source, labeler)
    data: TaggedDataModule = instantiate(cfg.data)
    if list(data.class_names) != recipe["class_names"]:
        raise UserError(
            f"ckpt={cfg.ckpt} knows the classes {recipe['class_names']}, the data has "
            f"{list(data.class_names)}: label data of the checkpoint's classes"
        )
    images = WholeImages(
        choose_images(data, cfg.split, cfg.sweep_thresholds), data.num_workers, data.skip_broken
    )
    crf = cfg.dense_crf if cfg.crf else None
    protocol = instantiate(cfg.protocol, crf=crf, mean=recipe["mean"], std=recipe["std"])
    source = LabelSource(cfg.source, labeler, protocol)
    run = sweep if cfg.sweep_thresholds else write
    return run(cfg, net, source, scores, images, describe(cfg, recipe, source, scores))


if __name__ == "__main__":
    main()
