"""Which images a training step sees, as a pure function of (seed, step).

The draws form one endless line of positions p = step · batch_size + k. Epoch e = p // n is a permutation of
the n images made from (seed, e), or n draws by weight; the augmentation of a draw is seeded from (seed, p),
and so is the choice of an image in the place of one that cannot be read. Processes and accumulated
micro-batches cut a step's draws among themselves, so their number never changes what a step sees, and a
resumed run goes on where the unbroken run would have been.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import cv2
import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.errors import UserError
from wsss_afa.types import Sample

MAX_REPLACEMENTS = 20  # images tried in the place of one that cannot be read
_GRACE = 25  # seconds; SLURM kills 30 after SIGTERM


class Draw(NamedTuple):
    """One image of one step."""

    image: int  # index in the data set
    seed: int  # of its augmentation, in [0, 2**32)


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
        weights: (n,) how often to draw an image, relative to the others; None draws each once an epoch.

    Raises:
        UserError: There is no image, the seed is negative or the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        length: int, batch_size: int, num_steps: int, seed: int = 0, start_step: int = 0, rank: int = 0,
        world_size: int = 1, accumulation: int = 1, weights: NDArray[np.floating[Any]] | None = None,
    ) -> None:  # fmt: skip
        if length < 1:
            raise UserError("the training split has 0 images, need at least 1: look at its list")
        if seed < 0:
            raise UserError(f"data.seed is {seed}, need 0 or more: set seed=0, for example")
        parts = world_size * accumulation
        if batch_size < 1 or batch_size % parts:
            share = f"{parts} ({world_size} processes × {accumulation} accumulated batches)"
            raise UserError(f"data.batch_size is {batch_size}, need a multiple of {share}: change it")
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._steps, self._total = range(start_step, num_steps), num_steps * accumulation
        self._size = batch_size // parts
        self._offsets = [(m * world_size + rank) * self._size for m in range(accumulation)]
        self.order: Callable[[int], Any] = partial(_order, seed, length, weights)
        """Gives the images of an epoch by position, an array for one; another may take its place."""
        self._epoch = -1
        self._current: Any = None

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self._steps:
            for offset in self._offsets:
                first = step * self._batch_size + offset
                yield [self._draw(position) for position in range(first, first + self._size)]

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self._length)
        if epoch != self._epoch:
            self._epoch, self._current = epoch, self.order(epoch)
        seed = np.random.SeedSequence((self._seed, position)).generate_state(1)
        return Draw(int(self._current[place]), int(seed[0]))


def balanced_weights(labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights (n,) that draw an image as often as the rarest of its classes asks (Gupta et al., CVPR 2019).

    A class of the tags (n, C) asks for the inverse of its frequency; images without tags count as a class.
    Where every image has one tag, all classes are drawn equally often.
    """
    groups = np.column_stack([labels, ~labels.any(1)])
    return np.asarray((groups / groups.sum(0).clip(1)).max(1))


def _order(seed: int, length: int, weights: NDArray[Any] | None, epoch: int) -> NDArray[np.int64]:
    rng = np.random.default_rng((seed, epoch))
    images = rng.permutation(length)
    if weights is None:
        return images
    edges = np.cumsum(weights[images] / weights.sum())
    points = (np.arange(length) + rng.random()) / length
    drawn = np.searchsorted(edges, points, side="right").clip(max=length - 1)
    return np.asarray(rng.permutation(images[drawn]))


def own_share(length: int, trainer: L.Trainer | None, what: str) -> range:
    """Every ``world_size``-th of some images, those of this process; without a Trainer all of them.

    A UserError says that there are more processes than images, ``what`` for people.
    """
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    if length < world_size:
        problem = f"{length} {what} for {world_size} processes, need one for each"
        raise UserError(f"{problem}: add some, raise data.val_fraction, or lower trainer.devices")
    return range(rank, length, world_size)


class SampleSet(Protocol):
    """What every data set of this project offers.

    One whose images are files also has ``names``, those of its samples in order: a resumed run compares them.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C foreground classes."""

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Tags of all images, (n, C)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Augmented(Dataset[dict[str, Any]]):
    """A data set seen through a transform of images and masks; items have the keys of a ``Batch``.

    With ``skip_broken`` another image, drawn by the draw's seed, takes the place of one that cannot be read;
    one asked for by its index is left empty. Items then have ``broken``, a list of messages.
    """

    def __init__(
        self, dataset: SampleSet, transform: TrainTransform | EvalTransform, skip_broken: bool = False
    ) -> None:
        self.dataset, self.transform, self.skip_broken = dataset, transform, skip_broken

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        index, seed = draw if isinstance(draw, Draw) else (draw, None)
        if not self.skip_broken:
            return self._item(index, seed)
        broken, replacements = list[str](), MAX_REPLACEMENTS if isinstance(draw, Draw) else 0
        rng = np.random.default_rng((seed or 0, 1))
        for _ in range(1 + replacements):
            try:
                return self._item(index, seed) | {"broken": broken}
            except UserError as error:
                broken.append(str(error))
                index = int(rng.integers(len(self.dataset)))
        if replacements:
            raise UserError(f"{len(broken)} images in a row cannot be read, the last as {broken[-1]}")
        return {"broken": broken}

    def _item(self, index: int, seed: int | None) -> dict[str, Any]:
        sample, drawn = self.dataset[index], seed or 0
        image, box = self.transform(sample["image"], drawn)
        item: dict[str, Any] = {"image": image, "valid_box": box, "name": sample["name"]}
        item["class_label"] = torch.from_numpy(sample["class_label"])
        if "mask" in sample:
            item["mask"] = self.transform.label(sample["mask"], drawn)
        if seed is not None:
            item["seed"] = torch.tensor(seed)
        if views := self.transform.views(sample["image"], drawn):
            item["views"] = views
        return item


class DrawLoader(DataLoader[dict[str, Any]]):
    """A loader whose position is its sampler's ``start_step``: there is no state to keep.

    ``state_dict`` and ``load_state_dict`` say so to Lightning, which would otherwise warn on every resume
    that the order is lost. Messages of images that were skipped are added to ``broken``.
    """

    def __init__(
        self, dataset: Augmented, batches: Iterable[list[Any]], num_workers: int, broken: set[str]
    ) -> None:
        super().__init__(
            dataset, batch_sampler=batches, num_workers=num_workers, persistent_workers=num_workers > 0,
            collate_fn=_collate, worker_init_fn=_prepare_worker, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        self._broken = broken

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Batches without what could not be read."""
        for batch in super().__iter__():
            self._broken.update(batch.pop("broken", ()))
            if batch:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the sampler was made for the step at which the run resumes."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is nothing to do."""


def say_skipped(broken: Iterable[str]) -> None:
    """Print the messages of images that were skipped, if any were."""
    lines = sorted(broken)
    if lines:
        print("\n  ".join([f"skipped   {len(lines)} unreadable images:", *lines]))


def _prepare_worker(worker_id: int) -> None:  # outlives a signal to all, for the trainer ends its workers
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):  # Windows, where no signal reaches it
        return
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    broken = [message for item in items for message in item.pop("broken", ())]
    whole = [item for item in items if item]
    batch: dict[str, Any] = default_collate(whole) if whole else {}
    return batch | {"broken": broken} if broken else batch
