"""Pairs of tokens against loops over all pairs."""

from __future__ import annotations

import pytest
import torch

import reference
from wsss_afa.ops.affinity import affinity_label, feature_affinity, radius_mask


def random_label(*shape: int, ignored: float = 0.2) -> torch.Tensor:
    label = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    return label.masked_fill(drawn < ignored, 255)


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(3, 5, 1), (5, 3, 2), (1, 6, 2), (4, 4, 0), (4, 3, 9)]
)
def test_radius_mask_equals_the_loop(height, width, radius):
    mask = radius_mask(height, width, radius)
    assert (mask.shape, mask.dtype) == ((height * width,) * 2, torch.bool)
    assert torch.equal(mask, reference.radius_mask(height, width, radius))
    assert torch.equal(mask, mask.T)
    assert mask.diagonal().all()


def test_radius_is_per_axis_and_inclusive():
    mask = radius_mask(4, 4, 2)
    assert mask[0, 2 * 4 + 2]  # Chebyshev distance 2, Euclidean 2.8
    assert not mask[0, 3]
    assert not mask[3, 4]  # neighbours in memory, on different sides of the grid


@pytest.mark.parametrize(
    ("size", "grid"), [((12, 20), (3, 5)), ((20, 12), (5, 3)), ((11, 13), (3, 4)), ((3, 4), (3, 4))]
)
def test_label_equals_the_loop(size, grid):
    label = random_label(2, *size)
    pairs = affinity_label(label, grid, radius=2)
    assert (pairs.shape, pairs.dtype) == ((2, grid[0] * grid[1], grid[0] * grid[1]), torch.int64)
    for one, expected in zip(pairs, label, strict=True):
        assert torch.equal(one, reference.affinity_label(expected, grid, 2))


def test_label_properties():
    label = random_label(3, 4, 5)
    before = label.clone()
    pairs = affinity_label(label, (4, 5), radius=9)
    ignored = label.flatten(1) == 255
    assert ignored.any()
    assert not ignored.all()
    assert torch.equal(pairs, pairs.mT)
    assert torch.equal(label, before)
    for one, out in zip(pairs, ignored, strict=True):
        assert (one[out] == 255).all()
        assert (one[:, out] == 255).all()
        assert (one[~out][:, ~out] != 255).all()
        assert (one.diagonal()[~out] == 1).all()


def test_two_unknown_tokens_are_not_alike():
    assert (affinity_label(torch.full((1, 4, 4), 255), (2, 2), radius=8) == 255).all()


def test_label_on_another_device():
    pairs = affinity_label(torch.zeros(1, 8, 8, dtype=torch.long, device="meta"), (2, 2), radius=1)
    assert (pairs.device.type, pairs.shape) == ("meta", (1, 4, 4))


@pytest.mark.parametrize("center", [None, "batch", "image"])
def test_affinity_of_features(center):
    features = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    found = feature_affinity(features, 3.0, center)
    tokens = features.flatten(2).mT
    if center is not None:
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    products = torch.tensor([[[float(a @ b) for b in image] for a in image] for image in tokens])
    means = {None: [0.0, 0.0], "batch": [products.mean()] * 2, "image": [each.mean() for each in products]}
    for image in range(2):
        expected = 1 / (1 + torch.exp(-3 * (products[image] - means[center][image])))
        torch.testing.assert_close(found[image], expected)
