"""Propagation against a walk written entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import reference
from wsss_afa.ops.random_walk import RandomWalkPropagation, propagate

GRID = (3, 4)


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.rand(2, 3, *GRID, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def affinity() -> torch.Tensor:
    drawn = torch.rand(2, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (drawn + drawn.mT) / 2


@pytest.mark.parametrize(
    ("radius", "power", "num_log_steps"), [(1, 2, 0), (8, 2, 0), (1, 1, 0), (2, 4, 0), (1, 2, 1), (8, 3, 2)]
)
def test_values(maps, affinity, radius, power, num_log_steps):
    moved = RandomWalkPropagation(radius, power, num_log_steps)(maps, affinity)
    assert moved.shape == maps.shape
    for i in range(2):
        expected = reference.propagate(maps[i], affinity[i], radius, power, num_log_steps)
        torch.testing.assert_close(moved[i], expected, rtol=1e-12, atol=1e-12)


def test_columns_are_scaled_not_rows(maps, affinity):
    lopsided = affinity.triu()
    expected = torch.stack(
        [reference.propagate(*pair, radius=8) for pair in zip(maps, lopsided, strict=True)]
    )
    torch.testing.assert_close(propagate(maps, lopsided), expected)


def test_identity_returns_its_input(maps):
    identity = torch.eye(12, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(propagate(maps, identity), maps / 1.1)


def test_isolated_tokens_fade(maps):
    moved = propagate(maps, torch.zeros(2, 12, 12, dtype=torch.float64))
    assert torch.equal(moved, torch.zeros_like(maps))


def test_nothing_crosses_the_radius(affinity):
    maps = torch.zeros(2, 1, *GRID, dtype=torch.float64)
    maps[..., 0, 0] = 1
    moved = propagate(maps, affinity, radius=1)
    assert (moved[..., :2, :2] > 0).all()
    assert moved[..., 2, :].eq(0).all()
    assert moved[..., 2:].eq(0).all()


def test_input_is_untouched(maps, affinity):
    before = maps.clone(), affinity.clone()
    propagate(maps, affinity, num_log_steps=1)
    assert torch.equal(maps, before[0])
    assert torch.equal(affinity, before[1])


def test_gradient(maps, affinity):
    inputs = (maps[:1, :1].requires_grad_(), affinity[:1].requires_grad_())
    assert gradcheck(lambda m, a: propagate(m, a, radius=1), inputs)


def test_maps_of_another_grid(affinity):
    with pytest.raises(RuntimeError):
        propagate(torch.rand(2, 3, 3, 5, dtype=torch.float64), affinity)
