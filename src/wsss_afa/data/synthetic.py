"""Synthetic scenes: textured coloured shapes on a cluttered background, with exact masks.

A data set that needs no files and that a small network learns from scratch in minutes. A class is a shape, a
texture and (with ``hue_probability``) a hue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.shapes import KINDS, Object, background, paint, place
from wsss_afa.errors import UserError
from wsss_afa.types import Sample

SPLITS = ("train", "val")
MIN_SIZE = 32  # pixels; below, textures and thin shapes vanish
HUE_SPREAD = 0.03


class SyntheticScenes:
    """Scenes drawn on demand; a scene is a pure function of (seed, split, index) and of the settings.

    Each holds 1 to ``max_objects`` objects of distinct classes. The tags are the classes of the mask,
    each with more than 0.6 % of the image.

    Args:
        length: Number of scenes.
        size: Side of the square image in pixels, at least 32.
        num_classes: C, 1 to 8: the first rows of ``KINDS``.
        hue_probability: Difficulty. With this probability an object has its class's hue c / C ± 0.03, else
            any hue, and only shape and texture tell its class.
        max_objects: Most objects in a scene, at least 1; never more than there are classes.
        seed: Not negative.
        split: ``train`` or ``val``; they share no scene.
        with_mask: Whether samples carry the mask.

    Raises:
        UserError: A value outside the range above.
    """

    def __init__(
        self,
        length: int,
        size: int = 96,
        num_classes: int = 6,
        hue_probability: float = 1.0,
        max_objects: int = 3,
        seed: int = 0,
        split: str = "train",
        with_mask: bool = False,
    ) -> None:
        for name, value, valid, need in (
            ("length", length, length >= 1, "at least 1"),
            ("size", size, size >= MIN_SIZE, f"at least {MIN_SIZE} pixels"),
            ("num_classes", num_classes, 1 <= num_classes <= len(KINDS), f"1 to {len(KINDS)}"),
            ("hue_probability", hue_probability, 0 <= hue_probability <= 1, "0 to 1"),
            ("max_objects", max_objects, max_objects >= 1, "at least 1"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("split", split, split in SPLITS, " or ".join(SPLITS)),
        ):
            if not valid:
                raise UserError(f"synthetic scenes: {name} is {value!r}, needed is {need}; change {name}")
        self.length, self.size, self.hue_probability, self.seed = length, size, hue_probability, seed
        self._most = (size, num_classes, min(max_objects, num_classes))
        self.split, self.with_mask = split, with_mask
        self.class_names = tuple(kind.name for kind in KINDS[:num_classes])
        self.summary = f"{length} generated scenes for {split}"

    @cached_property
    def labels(self) -> NDArray[np.bool_]:
        """Tags of all scenes, (n, C); each scene's objects are placed to know them, but not painted."""
        scenes = (place(self._rng(index), *self._most)[0] for index in range(self.length))
        return np.stack([self._tags(objects) for objects in scenes])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = self._rng(index)
        objects, mask = place(rng, *self._most)
        canvas = background(rng, self.size).astype(np.float32)
        for item in objects:
            paint(canvas, item, self._hue(rng, item.category), rng)
        noise = rng.integers(0, 32, canvas.shape, dtype=np.uint8)
        image, label = (canvas + noise - 15).clip(0, 255), self._tags(objects)  # the noise's mean is 15.5
        name = f"{self.split}_{index:06d}"
        sample = Sample(image=image.astype(np.uint8), class_label=label.astype(np.float32), name=name)
        if self.with_mask:
            sample["mask"] = mask
        return sample

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index])

    def _tags(self, objects: list[Object]) -> NDArray[np.bool_]:
        return np.isin(np.arange(len(self.class_names)), [item.category for item in objects])

    def _hue(self, rng: np.random.Generator, category: int) -> float:
        if rng.random() < self.hue_probability:
            return float(category / len(self.class_names) + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1
        return float(rng.random())


@dataclass(eq=False, repr=False)
class SyntheticDataModule(TaggedDataModule):
    """Generated scenes of textured shapes: no files.

    Settings that are not named below are those of ``TaggedDataModule``.

    Args:
        image_size: Side of a scene in pixels.
        num_classes: 1 to 8 shapes.
        train_images: Scenes of the training split.
        val_images: Scenes of the validation split.
        hue_probability: Difficulty, in [0, 1]: how often an object has its class's hue.
        max_objects: Most objects in a scene.
        scene_seed: Of the scenes, apart from ``seed``: runs of other seeds see the same data.

    Raises:
        UserError: A value is out of its range.
    """

    image_size: int = 96
    num_classes: int = 6
    train_images: int = 4000
    val_images: int = 100
    hue_probability: float = 1.0
    max_objects: int = 3
    scene_seed: int = 0
    crop_size: int = field(default=96, kw_only=True)
    scale: Sequence[float] = field(default=(1.0, 1.0), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        difficulty = (self.num_classes, self.hue_probability, self.max_objects)
        settings = (self.image_size, *difficulty, self.scene_seed)
        train = SyntheticScenes(self.train_images, *settings, split="train")
        val = SyntheticScenes(self.val_images, *settings, split="val", with_mask=True)
        self._scenes, self.class_names = {"train": train, "val": val}, val.class_names

    def make_set(self, split: str) -> SyntheticScenes:
        """Scenes of one of two splits that share none; those of ``val`` have masks."""
        return self._scenes[split]
