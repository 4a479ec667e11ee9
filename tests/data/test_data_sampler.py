"""The order of draws: a pure function of (seed, step), whatever the number of processes."""

import numpy as np
import pytest
import torch

from wsss_afa.data.sampler import Augmented, Draw, DrawSampler
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.transforms import EvalTransform, TrainTransform
from wsss_afa.errors import UserError

LENGTH, BATCH, STEPS = 13, 12, 9


def steps_of(world_size, accumulation, **changes):
    """The draws of every optimiser step, over all processes and micro-batches."""
    arguments = {"length": LENGTH, "batch_size": BATCH, "num_steps": STEPS, "seed": 4, **changes}
    ranks = [
        list(DrawSampler(**arguments, rank=rank, world_size=world_size, accumulation=accumulation))
        for rank in range(world_size)
    ]
    number = arguments["num_steps"] - arguments.get("start_step", 0)
    assert all(len(batches) == number * accumulation for batches in ranks)
    assert all(len(batch) == BATCH // (world_size * accumulation) for batches in ranks for batch in batches)
    return [
        sorted(d for batches in ranks for b in batches[t * accumulation :][:accumulation] for d in b)
        for t in range(number)
    ]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 1), (2, 3), (4, 1), (3, 4), (1, 12)])
def test_a_step_sees_the_same_however_it_is_shared_out(world_size, accumulation):
    assert steps_of(world_size, accumulation) == steps_of(1, 1)


@pytest.mark.parametrize(("length", "batch_size"), [(13, 4), (3, 8), (1, 5), (12, 12)])
def test_every_epoch_is_a_permutation(length, batch_size):
    batches = list(DrawSampler(length, batch_size, num_steps=40))
    line = [draw.image for batch in batches for draw in batch]
    epochs = [line[start : start + length] for start in range(0, len(line) - length + 1, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length == 13:
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_resumed_run_goes_on_where_it_was():
    assert steps_of(2, 2, start_step=5) == steps_of(2, 2)[5:]


def test_length_counts_the_whole_run():
    sampler = DrawSampler(LENGTH, BATCH, STEPS, start_step=5, accumulation=2)
    assert (len(sampler), len(list(sampler))) == (STEPS * 2, (STEPS - 5) * 2)


def test_augmentation_seeds_differ_between_draws_and_runs():
    def seeds(seed):
        return [draw.seed for batch in DrawSampler(LENGTH, BATCH, 50, seed) for draw in batch]

    assert len(set(seeds(0))) == 50 * BATCH
    assert not set(seeds(0)) & set(seeds(1))
    assert seeds(0) == seeds(0)
    assert all(0 <= seed < 2**32 for seed in seeds(0))


def test_one_permutation_at_a_time(monkeypatch):
    """Each epoch's order is made once, although a batch spans several."""
    made = []
    original = np.random.Generator

    def order(seed, length, weights, epoch):
        made.append(epoch)
        return original(np.random.PCG64((seed, epoch))).permutation(length)

    monkeypatch.setattr("wsss_afa.data.sampler._order", order)
    list(DrawSampler(3, 8, num_steps=6))
    assert made == list(range(16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"world_size": 5}, "multiple of 5 .5 processes × 1 accumulated"),
        ({"accumulation": 7}, "multiple of 7"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"length": 0}, "0 images"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(UserError, match=words):
        DrawSampler(**{"length": LENGTH, "batch_size": BATCH, "num_steps": STEPS, **changes})


def test_augmented_items_are_batches_in_the_making():
    scenes = SyntheticScenes(4, size=32)
    items = Augmented(scenes, TrainTransform(24))
    item = items[Draw(2, 7)]
    assert set(item) == {"image", "class_label", "valid_box", "name", "seed"}
    assert item["name"] == scenes[2]["name"]
    assert torch.equal(item["image"], TrainTransform(24)(scenes[2]["image"], 7)[0])
    assert not torch.equal(item["image"], items[Draw(2, 8)]["image"])


def test_augmented_masks_are_int64():
    scenes = SyntheticScenes(4, size=32, split="val", with_mask=True)
    item = Augmented(scenes, EvalTransform())[1]
    assert item["mask"].dtype == torch.int64
    assert np.array_equal(item["mask"].numpy(), scenes[1]["mask"])
