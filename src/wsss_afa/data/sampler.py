"""Which images a training step sees, as a pure function of (seed, step).

The draws form one endless line of positions p = step · batch_size + k. Epoch e = p // n is a permutation of
the n images made from (seed, e); the augmentation of a draw is seeded from (seed, p). Processes and
accumulated micro-batches cut a step's draws among themselves, so their number never changes what a step
sees, and a resumed run goes on where the unbroken run would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from wsss_afa.types import Sample, UserError


class Draw(NamedTuple):
    """One image of one step."""

    image: int
    """Index in the data set."""
    seed: int
    """Of its augmentation, in [0, 2**32)."""


class DrawSampler(Sampler[list[Draw]]):
    """Micro-batches of one process, for ``DataLoader(batch_sampler=…)``.

    Iteration yields what is left after ``start_step``, yet ``len()`` counts the micro-batches of the whole
    run: Lightning compares it with the batches taken since the run began, or a resumed epoch ends too soon.

    Args:
        length: Number of images n.
        batch_size: Images per optimiser step, over all processes and accumulated micro-batches.
        num_steps: Optimiser steps of the whole run.
        seed: Of the order and of the augmentations, not negative.
        start_step: Optimiser steps already taken.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        accumulation: Micro-batches per optimiser step.

    Raises:
        UserError: There is no image, the seed is negative or the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        num_steps: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
    ) -> None:
        if length < 1:
            raise UserError("the training split has 0 images, need at least 1: look at its list")
        if seed < 0:
            raise UserError(f"data.seed is {seed}, need 0 or more: set seed=0, for example")
        parts = world_size * accumulation
        if batch_size < 1 or batch_size % parts:
            raise UserError(
                f"data.batch_size is {batch_size} in total, need a multiple of {parts} ({world_size} "
                f"processes × {accumulation} accumulated batches): change one of them"
            )
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._steps = range(start_step, num_steps)
        self._shares = [_share(batch_size, parts, m * world_size + rank) for m in range(accumulation)]
        self._total = num_steps * accumulation

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in self._steps:
            for share in self._shares:
                batch = []
                for k in share:
                    position = step * self._batch_size + k
                    if position // self._length != epoch:
                        epoch = position // self._length
                        order = _permutation(self._seed, epoch, self._length)
                    batch.append(Draw(int(order[position % self._length]), _draw_seed(self._seed, position)))
                yield batch


def _share(total: int, parts: int, part: int) -> range:
    size = total // parts
    return range(part * size, (part + 1) * size)


def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(length)


def _draw_seed(seed: int, position: int) -> int:
    return int(np.random.SeedSequence((seed, position)).generate_state(1)[0])


class SampleSet(Protocol):
    """What every data set of this project offers."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C foreground classes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Augmented(Dataset[dict[str, Any]]):
    """A data set seen through a transform; items have the keys of a ``Batch``.

    Args:
        dataset: Where samples come from.
        transform: (image, seed) to (image tensor, valid box). Of a set with masks it must keep the size.
    """

    def __init__(
        self, dataset: SampleSet, transform: Callable[[NDArray[np.uint8], int], tuple[Tensor, Tensor]]
    ) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        index, seed = draw if isinstance(draw, Draw) else (draw, 0)
        sample = self.dataset[index]
        image, box = self.transform(sample["image"], seed)
        item: dict[str, Any] = {"image": image, "valid_box": box, "name": sample["name"]}
        item["class_label"] = torch.from_numpy(sample["class_label"])
        if "mask" in sample:
            item["mask"] = torch.from_numpy(sample["mask"]).long()
            assert item["mask"].shape == image.shape[1:], "a transform that moves pixels has no mask to move"
        return item


class DrawLoader(DataLoader[dict[str, Any]]):
    """A loader whose position is its sampler's ``start_step``: there is no state to keep.

    The two methods say so to Lightning, which would otherwise warn on every resume that the order is lost.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do: the sampler was made for the step at which the run resumes."""
