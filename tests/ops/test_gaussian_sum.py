"""Sums over tiles against the full matrix."""

from __future__ import annotations

import pytest
import torch

from wsss_afa.ops.gaussian_sum import all_pairs, gaussian_sum


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def full_sum(features, values):
    kernel = (torch.cdist(features.double(), features.double()).square() / -2).exp()
    return kernel @ values.double()


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("tile", [1, 8, 64, 1000])
@pytest.mark.parametrize("way", [gaussian_sum, all_pairs])
def test_equals_the_full_matrix(count, tile, way):
    """With tiles, and as on a GPU."""
    features, values = 4 * rand(count, 5, seed=0), rand(count, 3, seed=1)
    torch.testing.assert_close(
        way(features, values, tile).double(), full_sum(features, values), rtol=1e-5, atol=1e-6
    )


def test_what_is_left_out_does_not_count():
    features, values = 40 * rand(600, 2, seed=2), rand(600, 2, seed=3)  # most pairs are out of reach
    torch.testing.assert_close(
        gaussian_sum(features, values, 16).double(), full_sum(features, values), rtol=1e-4, atol=1e-5
    )


def test_pixels_of_one_feature_are_summed():
    assert torch.equal(gaussian_sum(torch.ones(50, 3), torch.ones(50, 1), 8), torch.full((50, 1), 50.0))


def test_order_of_pixels_does_not_matter():
    features, values, order = 5 * rand(200, 5, seed=4), rand(200, 2, seed=5), torch.randperm(200)
    torch.testing.assert_close(
        gaussian_sum(features[order], values[order], 16), gaussian_sum(features, values, 16)[order]
    )
