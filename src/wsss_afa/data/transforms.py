"""From an image to a normalised tensor with the box of its valid part; labels move along with their image.

Augmentation of AFA (CVPR 2022, section 4.1): rescale, mirror, random crop with zero padding. A transform is
called with ``(image, seed)`` and is a pure function of the two, on any process and in any order. ``label``
takes an image's label through the same draw: called with equal sizes and seeds, the two stay pixel on pixel.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.types import IGNORE_INDEX, MEAN, STD

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for news
import albumentations as A
import cv2

from wsss_afa.data.views import View


class TrainTransform:
    """Rescale, mirror, normalise, place and crop.

    The image is resized by a ratio uniform in ``scale`` and mirrored with probability ``flip``. On each
    axis a longer image is cut at a uniform offset; a shorter one is placed at a uniform offset among the mean
    colour, which normalisation makes zeros, or among black.

    Args:
        crop_size: Side of the square output in pixels.
        scale: Smallest and largest ratio.
        flip: Probability of the horizontal mirror.
        mean: RGB in 0…255 units.
        std: RGB in 0…255 units.
        padding: What surrounds a small image: ``mean`` or ``black``.
        views: Settings of views by name, see `View`. The one named ``image`` makes the image itself.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(
        self,
        crop_size: int,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        padding: str = "mean",
        views: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if crop_size < 1:
            raise UserError(f"data.crop_size is {crop_size}, need at least 1 pixel: try 512")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}, need 0 < smallest <= largest: try [0.5, 2.0]")
        if not 0 <= flip <= 1:
            raise UserError(f"data.flip is {flip}, need a probability in [0, 1]: try 0.5")
        if padding not in ("mean", "black"):
            raise UserError(f"padding={padding} is not known; need mean or black")
        self.crop_size = crop_size
        self._least_side = math.ceil(1 / scale[0])  # of which a pixel is left
        limit = (scale[0] - 1, scale[1] - 1)
        rescale = A.RandomScale(
            limit, mask_interpolation=cv2.INTER_NEAREST_EXACT, area_for_downscale="image", p=1
        )
        self._geometry = A.Compose([A.HorizontalFlip(p=flip), rescale])
        self._normalize = _Normalize(mean, std)
        black = self._normalize(np.zeros((1, 1, 3), np.uint8))
        self._padding = black if padding == "black" else torch.zeros(3, 1, 1)
        self._views = {name: View(name, crop_size, flip, **each) for name, each in (views or {}).items()}
        self._own = self._views.pop("image", None)

    def __call__(self, image: NDArray[np.uint8], seed: int) -> tuple[Tensor, Tensor]:
        """Augment one (H, W, 3) image.

        Returns:
            Image (3, crop_size, crop_size) float32, and its valid box (4,) int64.
        """
        return self._see(image, seed, self._own)

    def views(self, image: NDArray[np.uint8], seed: int) -> dict[str, Tensor]:
        """Further views of the image by name, each (3, crop_size, crop_size) float32.

        Views that are not cut have the geometry that the image itself has.
        """
        return {name: self._see(image, seed, view)[0] for name, view in self._views.items()}

    def _see(self, image: NDArray[np.uint8], seed: int, view: View | None) -> tuple[Tensor, Tensor]:
        if view is not None and view.cuts:
            return self._place(view(image, seed), [0, self.crop_size, 0, self.crop_size])
        moved, box = self._move({"image": image}, "image", seed)
        return self._place(moved if view is None else view(np.ascontiguousarray(moved), seed), box)

    def _place(self, pixels: NDArray[np.uint8], box: list[int]) -> tuple[Tensor, Tensor]:
        top, bottom, left, right = box
        canvas = self._padding.repeat(1, self.crop_size, self.crop_size)
        canvas[:, top:bottom, left:right] = self._normalize(pixels)
        return canvas, torch.tensor(box)

    def label(self, label: NDArray[np.uint8], seed: int) -> Tensor:
        """Take an image's label (H, W) the way that ``seed`` takes the image, to the nearest pixel.

        Returns:
            (crop_size, crop_size) int64, 255 where there is no image.
        """
        label, (top, bottom, left, right) = self._move({"image": label, "mask": label}, "mask", seed)
        canvas = torch.full((self.crop_size, self.crop_size), IGNORE_INDEX)
        canvas[top:bottom, left:right] = torch.from_numpy(np.ascontiguousarray(label))
        return canvas

    def _move(
        self, pixels: dict[str, NDArray[np.uint8]], kind: str, seed: int
    ) -> tuple[NDArray[np.uint8], list[int]]:
        rng = np.random.default_rng(seed)
        pixels = {name: _lengthen(each, self._least_side) for name, each in pixels.items()}
        # one stream for all: equal seeds in each transform would tie the flip to the ratio
        self._geometry.set_random_state(rng, random.Random(seed))  # noqa: S311
        moved = self._geometry(**pixels)[kind]
        rows, top = self._window(moved.shape[0], rng)
        columns, left = self._window(moved.shape[1], rng)
        part = moved[rows, columns]
        return part, [top, top + part.shape[0], left, left + part.shape[1]]

    def _window(self, length: int, rng: np.random.Generator) -> tuple[slice, int]:
        offset = int(rng.integers(abs(length - self.crop_size) + 1))
        cut = length > self.crop_size
        return (slice(offset, offset + self.crop_size), 0) if cut else (slice(length), offset)


def _lengthen(image: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """The image (H, W, …) with sides of ``least`` pixels at least: its last row and column are repeated."""
    missing = [(0, max(0, least - side)) for side in image.shape[:2]]
    return (
        np.pad(image, (*missing, *[(0, 0)] * (image.ndim - 2)), mode="edge")
        if any(map(any, missing))
        else image
    )


class EvalTransform:
    """Normalise by an RGB mean and deviation in 0…255 units: native size, every pixel valid."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        self._normalize = _Normalize(mean, std)

    def __call__(self, image: NDArray[np.uint8], seed: int = 0) -> tuple[Tensor, Tensor]:
        """Normalise one (H, W, 3) image; the seed changes nothing.

        Returns:
            Image (3, H, W) float32, and its box (4,) int64: the whole image.
        """
        height, width = image.shape[:2]
        return self._normalize(image).contiguous(), torch.tensor([0, height, 0, width])

    def views(self, image: NDArray[np.uint8], seed: int = 0) -> dict[str, Tensor]:
        """No other views."""
        return {}

    def label(self, label: NDArray[np.uint8], seed: int = 0) -> Tensor:
        """The label (H, W) as it is, int64."""
        return torch.from_numpy(label).long()


class _Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._normalize = A.Normalize(tuple(mean), tuple(std), max_pixel_value=1.0)

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(self._normalize(image=image)["image"]).permute(2, 0, 1)
