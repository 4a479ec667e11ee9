"""The Lightning data module that all data sets share: one loader factory.

Batches are drawn by ``DrawSampler``, so the Trainer must not add a sampler of its own
(``use_distributed_sampler=False``), and a run is one epoch of ``trainer.max_steps`` steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from wsss_afa.data.label_folder import LabelledImages
from wsss_afa.data.sampler import (
    Augmented,
    DrawLoader,
    DrawSampler,
    SampleSet,
    balanced_weights,
    own_share,
    say_skipped,
)
from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.errors import UserError
from wsss_afa.types import MEAN, STD


@dataclass(eq=False, repr=False, kw_only=True)
class TaggedDataModule(L.LightningDataModule, ABC):
    """Loaders of a training set without masks and of a validation set, with masks where there are any.

    Data modules are dataclasses: each adds its own arguments to these, which are given by name.

    Args:
        batch_size: Images per optimiser step, over all processes and accumulated micro-batches.
        crop_size: Side of a training crop in pixels.
        num_workers: Loader processes of each training process; 0 loads in the process itself.
        scale: Smallest and largest ratio of random rescaling.
        flip: Probability of a horizontal mirror.
        seed: Of the order and of the augmentations, not negative.
        balanced: Whether images of rare classes are drawn more often, by the inverse of their frequency.
            Worth trying where some classes have ten times the images of others.
        skip_broken: Whether an image that cannot be read is replaced in training, left out in validation and
            reported at the end, instead of stopping the run.

    Raises:
        UserError: A value is out of its range.
    """

    batch_size: int = 8
    crop_size: int = 512
    num_workers: int = 0
    scale: Sequence[float] = (0.5, 2.0)
    flip: float = 0.5
    seed: int = 0
    balanced: bool = False
    skip_broken: bool = False

    class_names: tuple[str, ...] = field(init=False)
    """The C foreground classes."""
    has_masks = True
    """Whether validation images have masks."""
    val_split = "val"
    """Name of the validation split."""

    def __post_init__(self) -> None:
        super().__init__()
        self.normalize(MEAN, STD)
        self._train: SampleSet | None = None
        self._val: SampleSet | None = None
        self._broken: set[str] = set()

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.class_names)

    @property
    def train_set(self) -> SampleSet:
        """The training images; ``setup("fit")`` comes first."""
        assert self._train is not None, "setup('fit') comes first"
        return self._train

    @property
    def val_set(self) -> SampleSet | None:
        """The validation images; None where no validation is set up."""
        return self._val

    @property
    def train_tags(self) -> NDArray[np.bool_]:
        """Tags of the training images, (n, C)."""
        return self.train_set.labels

    @property
    def num_train_images(self) -> int:
        """Training images."""
        return len(self.train_set)

    @property
    def num_val_images(self) -> int:
        """Validation images; 0 where no validation is set up."""
        return 0 if self._val is None else len(self._val)

    @abstractmethod
    def make_set(self, split: str) -> SampleSet:
        """The images of ``train``, without masks, or of ``val``, with masks if they have any."""

    def normalize(
        self, mean: Sequence[float], std: Sequence[float], augmentation: Mapping[str, Any] | None = None
    ) -> None:
        """Normalise by an RGB mean and deviation in 0…255 units; until then ImageNet's are used.

        ``augmentation`` is what a method adds to that of training images: ``padding`` and ``views``, see
        `TrainTransform`. A UserError says that it has a setting that is none.
        """
        more, base = augmentation or {}, (self.crop_size, self.scale, self.flip, mean, std)
        try:
            self._train_transform = TrainTransform(*base, **more)
        except TypeError as error:
            raise UserError(
                f"method.augmentation={dict(more)}: {error}; see conf/method/toco.yaml"
            ) from error
        self.eval_transform = EvalTransform(mean, std)

    def setup(self, stage: str) -> None:
        """Find the files of the stage; a UserError says that some are missing or not laid out as expected."""
        if stage == "fit" and self._train is None:
            self._train = self.make_set("train")
        validates = self.trainer.limit_val_batches > 0 if self.trainer else stage == "validate"
        if self._val is None and validates:
            self._val = self.make_set("val")
            own_share(len(self._val), self.trainer, "validation images")

    def use_labels(self, folder: str | Path) -> None:
        """Train on a folder of label PNGs, or raise a UserError if it does not fit; ``setup`` comes first."""
        self._train = LabelledImages(self.train_set, folder)

    def train_dataloader(self) -> DrawLoader:
        """The micro-batches that this process has yet to see; without a Trainer, one pass over the images.

        Raises:
            UserError: The run has no number of steps, or the batch cannot be shared out evenly.
        """
        images = Augmented(self.train_set, self._train_transform, self.skip_broken)
        return DrawLoader(images, self._sampler(len(images)), self.num_workers, self._broken)

    def val_dataloader(self) -> DrawLoader:
        """Single images of native size: every ``world_size``-th, so that none is seen twice."""
        if self._val is None:
            self._val = self.make_set("val")
        batches = [[index] for index in own_share(len(self._val), self.trainer, "validation images")]
        images = Augmented(self._val, self.eval_transform, self.skip_broken)
        return DrawLoader(images, batches, self.num_workers, self._broken)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move all but the seeds, which are read on the CPU."""
        seed = {name: value for name, value in batch.items() if name == "seed"}
        moved: dict[str, Any] = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return {**moved, **seed}

    def teardown(self, stage: str) -> None:
        """Report the images that were skipped."""
        say_skipped(self._broken)

    def _sampler(self, length: int) -> DrawSampler:
        place = {"num_steps": -(-length // self.batch_size)}
        if (trainer := self.trainer) is not None:
            if trainer.max_steps < 1:
                raise UserError(f"trainer.max_steps is {trainer.max_steps}, need the number of steps: set it")
            place = {
                "num_steps": trainer.max_steps,
                "start_step": trainer.global_step,
                "rank": trainer.global_rank,
                "world_size": trainer.world_size,
                "accumulation": trainer.accumulate_grad_batches,
            }
        weights = balanced_weights(self.train_tags) if self.balanced else None
        return DrawSampler(length, self.batch_size, seed=self.seed, weights=weights, **place)
