"""Views of a training image: cuts and colours drawn at random, for methods that contrast or disturb images.

A view is a pure function of (image, seed), as every transform is.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from wsss_afa.errors import UserError


class View:
    """Cut, mirror, change colours, blur and solarise an image of 8 bits; each with a probability of its own.

    Without ``area`` a view keeps the geometry that the image has, and changes its colours alone.

    Args:
        name: of the view; two views of one image differ by their names.
        crop_size: side of what is cut, in pixels.
        flip: probability of a mirror, where the view is cut.
        area: smallest and largest share of the image's area that is cut and resized; None cuts nothing.
        aspect: smallest and largest ratio of width to height of that part.
        jitter: probability that brightness, contrast, saturation and hue change, in random order.
        strength: how far each of the four changes at most, as in torchvision's ``ColorJitter``.
        grey: probability that colours go.
        blur: probability of a Gaussian blur.
        radius: smallest and largest standard deviation of the blur, in pixels.
        solarize: probability that values from 128 on are inverted.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        name: str, crop_size: int, flip: float = 0.5, area: Sequence[float] | None = None,
        aspect: Sequence[float] = (3 / 4, 4 / 3), jitter: float = 0.0,
        strength: Sequence[float] = (0.4, 0.4, 0.2, 0.1), grey: float = 0.0, blur: float = 0.0,
        radius: Sequence[float] = (0.1, 2.0), solarize: float = 0.0,
    ) -> None:  # fmt: skip
        chances = {"jitter": jitter, "grey": grey, "blur": blur, "solarize": solarize}
        for key, chance in chances.items():
            if not 0 <= chance <= 1:
                raise UserError(f"the view {name} has {key}={chance}, need a probability in [0, 1]: mend it")
        if area is not None and not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
            raise UserError(f"the view {name} has area={list(area)}, need shares in (0, 1]: try [0.4, 1.0]")
        self.cuts = area is not None
        self._key = zlib.crc32(name.encode())
        steps = _cut(crop_size, flip, area, aspect) if area is not None else []
        self._steps = A.Compose([
            *steps,
            A.ColorJitter(*strength, p=jitter),
            A.ToGray(p=grey),
            A.GaussianBlur(blur_limit=0, sigma_limit=(radius[0], radius[1]), p=blur),
            A.Solarize(threshold_range=(128 / 255, 128 / 255), p=solarize),
        ])  # fmt: skip

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """The view of an image (H, W, 3): of its size, or (crop_size, crop_size, 3) where the view is cut."""
        rng = np.random.default_rng((seed, self._key))
        self._steps.set_random_state(rng, random.Random(int(rng.integers(2**32))))  # noqa: S311
        seen: NDArray[np.uint8] = self._steps(image=image)["image"]
        return seen


def _cut(size: int, flip: float, area: Sequence[float], aspect: Sequence[float]) -> list[A.BasicTransform]:
    cut = A.RandomResizedCrop(
        (size, size), (area[0], area[1]), (aspect[0], aspect[1]), interpolation=cv2.INTER_CUBIC,
        area_for_downscale="image", p=1,
    )  # fmt: skip
    return [cut, A.HorizontalFlip(p=flip)]
