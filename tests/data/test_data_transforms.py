"""Augmentation: exact box, zero padding, independent random choices, determinism."""

import numpy as np
import pytest
import torch

from wsss_afa.data.transforms import MEAN, STD, EvalTransform, TrainTransform
from wsss_afa.errors import UserError

SEEDS = range(200)


def noise(height=30, width=50, low=0):
    return np.random.default_rng(0).integers(low, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (20, 20), (90, 25), (1, 7)])
def test_box_is_exactly_where_pixels_are(height, width):
    """With mean 0 and no black pixel, what is not zero is image."""
    transform = TrainTransform(40, mean=(0, 0, 0), std=(1, 1, 1), scale=(1.0, 2.0))
    for seed in SEEDS:
        image, box = transform(noise(height, width, low=1), seed)
        valid = (image != 0).all(0)
        rows, columns = torch.nonzero(valid.any(1)), torch.nonzero(valid.any(0))
        top, bottom, left, right = box.tolist()
        assert (top, bottom) == (rows.min(), rows.max() + 1)
        assert (left, right) == (columns.min(), columns.max() + 1)
        assert valid.sum() == (bottom - top) * (right - left)
        assert (image.shape, image.dtype, box.dtype) == ((3, 40, 40), torch.float32, torch.int64)


def test_without_geometry_it_is_plain_normalisation():
    image = noise(40, 40)
    out, box = TrainTransform(40, scale=(1, 1), flip=0)(image, 3)
    truth = (torch.from_numpy(image).double() - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(out, truth.permute(2, 0, 1).float(), atol=1e-5, rtol=1e-5)
    assert box.tolist() == [0, 40, 0, 40]


def test_flip_mirrors():
    image = noise(40, 40)
    plain, _ = TrainTransform(40, scale=(1, 1), flip=0)(image, 3)
    mirrored, _ = TrainTransform(40, scale=(1, 1), flip=1)(image, 3)
    assert torch.equal(mirrored, plain.flip(-1))


def test_padding_is_zero_after_normalisation():
    image, box = TrainTransform(64, scale=(0.5, 0.5))(noise(), 0)
    top, bottom, left, right = box.tolist()
    assert (bottom - top, right - left) == (15, 25)
    image[:, top:bottom, left:right] = 0
    assert not image.any()


def test_same_seed_same_result_whatever_came_before():
    one, other = TrainTransform(40), TrainTransform(40)
    for seed in (5, 6, 7):
        other(noise(), seed)
    for a, b in zip(one(noise(), 5), other(noise(), 5), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one(noise(), 5)[0], one(noise(), 6)[0])


def test_ratio_is_uniform_and_independent_of_the_flip():
    """Left half dark, right half bright: brightness tells the flip, the box tells the ratio."""
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, 50:] = 255
    transform = TrainTransform(200, mean=(0, 0, 0), std=(1, 1, 1))
    ratios, flips = [], []
    for seed in range(600):
        out, (top, bottom, left, right) = transform(image, seed)
        ratios.append(int(bottom - top) / 100)
        flips.append(bool(out[0, top, left] > out[0, top, right - 1]))
    assert np.mean(flips) == pytest.approx(0.5, abs=0.07)
    assert np.quantile(ratios, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
        [0.5, 0.875, 1.25, 1.625, 2], abs=0.1
    )
    assert abs(np.corrcoef(ratios, flips)[0, 1]) < 0.12


def test_placement_and_crop_reach_every_offset():
    small, large = TrainTransform(12, scale=(1, 1)), TrainTransform(8, scale=(1, 1), flip=0)
    assert {small(noise(10, 10), seed)[1][0].item() for seed in SEEDS} == {0, 1, 2}
    ramp = np.repeat(np.arange(10, dtype=np.uint8)[:, None, None], 3, 2).repeat(10, 1)
    first = {round(large(ramp, seed)[0][0, 0, 0].item() * STD[0] + MEAN[0]) for seed in SEEDS}
    assert first == {0, 1, 2}


def test_eval_keeps_the_size():
    image, box = EvalTransform()(noise())
    assert (image.shape, box.tolist()) == ((3, 30, 50), [0, 30, 0, 50])
    assert image.is_contiguous()
    assert image[1, 2, 3].item() == pytest.approx((float(noise()[2, 3, 1]) - MEAN[1]) / STD[1], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"crop_size": 0}, "crop_size"),
        ({"crop_size": 8, "scale": (2, 1)}, "scale"),
        ({"crop_size": 8, "scale": (1,)}, "scale"),
        ({"crop_size": 8, "flip": 50}, "flip"),
    ],
)
def test_mistakes_name_the_key(arguments, word):
    with pytest.raises(UserError, match=f"data.{word}"):
        TrainTransform(**arguments)
