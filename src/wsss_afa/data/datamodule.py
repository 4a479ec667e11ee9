"""Lightning data modules: one loader factory, and which data sets fill it.

Batches are drawn by ``DrawSampler``, so the Trainer must not add a sampler of its own
(``use_distributed_sampler=False``), and a run is one epoch of ``trainer.max_steps`` steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import lightning as L
import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.coco import COCO, COCO_CLASSES
from wsss_afa.data.folder import TaggedFolder, read_folder
from wsss_afa.data.sampler import Augmented, DrawLoader, DrawSampler, SampleSet, balanced_weights
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.data.voc import VOC, VOC_CLASSES
from wsss_afa.types import UserError


class AFADataModule(L.LightningDataModule, ABC):
    """Loaders of a training set without masks and of a validation set, with masks where there are any.

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

    has_masks: bool = True
    """Whether validation images have masks."""

    def __init__(
        self,
        batch_size: int,
        crop_size: int,
        num_workers: int,
        scale: Sequence[float],
        flip: float,
        seed: int,
        balanced: bool,
        skip_broken: bool,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.balanced = balanced
        self.skip_broken = skip_broken
        self._train_transform = TrainTransform(crop_size, scale, flip)
        self._train: SampleSet | None = None
        self._val: SampleSet | None = None
        self._broken: set[str] = set()

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The C foreground classes, known without touching the disk."""

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.class_names)

    @property
    def train_tags(self) -> NDArray[np.bool_]:
        """Tags of the training images, (n, C); ``setup("fit")`` comes first."""
        assert self._train is not None, "setup('fit') comes first"
        return self._train.labels

    @abstractmethod
    def make_train_set(self) -> SampleSet:
        """The training images, without masks."""

    @abstractmethod
    def make_val_set(self) -> SampleSet:
        """The validation images, with masks if they have any."""

    def setup(self, stage: str) -> None:
        """Find the files of the stage.

        Raises:
            UserError: Files are missing or not laid out as expected.
        """
        if stage == "fit" and self._train is None:
            self._train = self.make_train_set()
        if self._val is None and self._validates():
            self._val = self.make_val_set()

    def train_dataloader(self) -> DrawLoader:
        """The micro-batches that this process has yet to see; without a Trainer, one pass over the images.

        Raises:
            UserError: The run has no number of steps, or the batch cannot be shared out evenly.
        """
        assert self._train is not None, "setup('fit') comes first"
        sampler = self._sampler(len(self._train))
        images = Augmented(self._train, self._train_transform, self.skip_broken)
        return DrawLoader(images, sampler, self.num_workers, self._broken)

    def val_dataloader(self) -> DrawLoader:
        """Single images of native size: every ``world_size``-th, so that none is seen twice."""
        assert self._val is not None, "setup('validate') comes first"
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = [[index] for index in range(rank, len(self._val), world_size)]
        images = Augmented(self._val, EvalTransform(), self.skip_broken)
        return DrawLoader(images, batches, self.num_workers, self._broken)

    def teardown(self, stage: str) -> None:
        """Report the images that were skipped."""
        if self._broken:
            print("\n  ".join([f"skipped   {len(self._broken)} unreadable images:", *sorted(self._broken)]))

    def _validates(self) -> bool:
        return self.trainer is None or self.trainer.limit_val_batches > 0

    def _sampler(self, length: int) -> DrawSampler:
        trainer, weights = self.trainer, balanced_weights(self.train_tags) if self.balanced else None
        if trainer is None:
            steps = -(-length // self.batch_size)
            return DrawSampler(length, self.batch_size, steps, self.seed, weights=weights)
        if trainer.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {trainer.max_steps}, need the run's number of optimiser steps: set it"
            )
        return DrawSampler(
            length,
            self.batch_size,
            num_steps=trainer.max_steps,
            seed=self.seed,
            start_step=trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            accumulation=trainer.accumulate_grad_batches,
            weights=weights,
        )


class VOCDataModule(AFADataModule):
    """PASCAL VOC 2012, or any folder in its layout.

    Args:
        root: The folder ``VOC2012`` with ``JPEGImages``.
        batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken: As in ``AFADataModule``.
        train_split: List of training images.
        val_split: List of validation images.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        train_split: str = "train_aug",
        val_split: str = "val",
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        self.root, self.train_split, self.val_split = root, train_split, val_split

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 20 classes of VOC."""
        return VOC_CLASSES

    def make_train_set(self) -> VOC:
        """The images of ``train_split`` with their tags."""
        return VOC(self.root, self.train_split)

    def make_val_set(self) -> VOC:
        """The images of ``val_split`` with their masks."""
        return VOC(self.root, self.val_split, with_mask=True)


class COCODataModule(AFADataModule):
    """MS COCO, 2014 or 2017.

    Args:
        root: The folder with ``annotations`` and the image folders.
        batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken: As in ``AFADataModule``.
        year: 2014 or 2017; None takes what is there, 2014 first.
        cache_dir: Where rasterised masks are kept; None is ``~/.cache/wsss_afa``.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        year: int | None = None,
        cache_dir: str | None = None,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        self.root, self.year, self.cache_dir = root, year, cache_dir

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 80 classes of COCO."""
        return COCO_CLASSES

    def make_train_set(self) -> COCO:
        """The annotated training images with their tags."""
        return COCO(self.root, "train", self.year)

    def make_val_set(self) -> COCO:
        """The annotated validation images with their masks."""
        return COCO(self.root, "val", self.year, with_mask=True, cache_dir=self.cache_dir)


class FolderDataModule(AFADataModule):
    """Any folder of tagged photos, with or without masks; the folder is read at once, its images are not.

    Args:
        root: The folder.
        labels: Tag file, relative to the root; None finds it.
        separator: Between tags in text; None finds out.
        val_fraction: Share of the photos that validate where the folder does not say, in (0, 1).
        split_seed: Of that choice, apart from ``seed``: runs of other seeds validate on the same photos.
        ignore_unlisted: Whether photos that the tag file does not name are left out instead of refused.
        batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken: As in ``AFADataModule``.

    Raises:
        UserError: A value is out of its range, or the folder cannot be read without guessing.
    """

    def __init__(
        self,
        root: str,
        labels: str | None = None,
        separator: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        ignore_unlisted: bool = False,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        self._content = read_folder(root, labels, separator, val_fraction, split_seed, ignore_unlisted)
        self.has_masks = bool(self._content.masks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the folder names."""
        return self._content.class_names

    def prepare_data(self) -> None:
        """Say what was found and how it was read."""
        print(f"data      {self._content.summary}")

    def make_train_set(self) -> TaggedFolder:
        """The training photos with their tags."""
        return TaggedFolder(self._content, "train")

    def make_val_set(self) -> TaggedFolder:
        """The validation photos with their tags and, if there are any, masks."""
        return TaggedFolder(self._content, "val", with_mask=self.has_masks)


class SyntheticDataModule(AFADataModule):
    """Generated scenes of textured shapes: no files.

    Args:
        image_size: Side of a scene in pixels.
        num_classes: 1 to 8 shapes.
        train_images: Scenes of the training split.
        val_images: Scenes of the validation split.
        hue_probability: Difficulty, in [0, 1]: how often an object has its class's hue.
        max_objects: Most objects in a scene.
        scene_seed: Of the scenes, apart from ``seed``: runs of other seeds see the same data.
        batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken: As in ``AFADataModule``.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(
        self,
        image_size: int = 96,
        num_classes: int = 6,
        train_images: int = 4000,
        val_images: int = 100,
        hue_probability: float = 1.0,
        max_objects: int = 3,
        scene_seed: int = 0,
        batch_size: int = 8,
        crop_size: int = 96,
        num_workers: int = 0,
        scale: Sequence[float] = (1.0, 1.0),
        flip: float = 0.5,
        seed: int = 0,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        settings = (image_size, num_classes, hue_probability, max_objects, scene_seed)
        self._scenes = {
            "train": SyntheticScenes(train_images, *settings, split="train"),
            "val": SyntheticScenes(val_images, *settings, split="val", with_mask=True),
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first ``num_classes`` shapes."""
        return self._scenes["val"].class_names

    def make_train_set(self) -> SyntheticScenes:
        """Scenes without masks."""
        return self._scenes["train"]

    def make_val_set(self) -> SyntheticScenes:
        """Other scenes, with masks."""
        return self._scenes["val"]
