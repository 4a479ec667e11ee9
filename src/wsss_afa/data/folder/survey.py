"""What an official data set holds: images, masks and tags of its splits, counted and, with masks, read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from wsss_afa.errors import UserError
from wsss_afa.types import Sample

_BATCH = 16

Tell = Callable[[int], None]
"""Called with the number of samples that are read."""


class Tagged(Protocol):
    """A split: ``VOC`` or ``COCO``."""

    class_names: tuple[str, ...]
    """C of them."""
    labels: NDArray[np.bool_]
    """(images, C) tags."""

    def __len__(self) -> int:
        """Images."""

    def __getitem__(self, index: int) -> Sample:
        """One image, with its mask."""


class Split(TypedDict):
    """Counts of a split."""

    images: int
    """Images that are read."""
    masks: int
    """Masks that are there and fit their images."""
    tags: dict[str, int]
    """Images of each class."""


def count_split(samples: Tagged, masks: int) -> Split:
    """Counts of a split of which ``masks`` masks were read."""
    counts = samples.labels.sum(0).tolist()
    tags = dict(zip(samples.class_names, counts, strict=True))
    return {"images": len(samples), "masks": masks, "tags": tags}


def read_all(samples: Tagged, num_workers: int, tell: Tell) -> int:
    """Read every sample, which proves each image and mask and draws the masks that are drawn.

    Returns:
        Their number.

    Raises:
        UserError: A sample cannot be read.
    """
    workers = min(num_workers, os.cpu_count() or 1)
    loader = DataLoader(_Reading(samples), _BATCH, num_workers=workers, collate_fn=len)
    done = 0
    for count in loader:
        done += count
        tell(done)
    return done


class _Reading(Dataset[None]):
    """Keeps what is read in the process that reads it."""

    def __init__(self, samples: Tagged) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> None:
        self.samples[index]


def count_images(root: Path) -> int:
    """Photographs below a folder, those without annotations included."""
    return sum(_count_jpegs(root))


def _count_jpegs(root: Path) -> Iterator[int]:
    return (sum(name.endswith(".jpg") for name in names) for _, _, names in os.walk(root))


def read_category_ids(path: Path) -> dict[str, int]:
    """COCO's ids, of 1 to 90, by class name in order of id; the id of class c is no mask value, c + 1 is.

    Raises:
        UserError: The file is missing or not COCO's.
    """

    def slim(item: dict[str, Any]) -> dict[str, Any] | None:
        return item if "name" in item or "categories" in item else None

    try:
        with path.open(encoding="utf-8") as file:
            categories = json.load(file, object_hook=slim)["categories"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} has no categories ({error!r}), need COCO's own: copy it anew") from error
    return {item["name"]: item["id"] for item in sorted(categories, key=lambda item: item["id"])}
