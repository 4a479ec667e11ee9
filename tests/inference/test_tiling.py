"""Tiles: weights that sum to one, no seam, and for a network that sees little the whole image's result."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from wsss_afa.inference.tiling import Grid, TiledNet, lay_spans, segment_in_tiles


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(4, 16), Grid(4, 8)])
@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("overlap", [0, 1, 5, 16, 31])
def test_spans_cover_an_axis_and_weights_sum_to_one(grid, tile, overlap):
    for length in (1, 31, 32, 33, 47, 48, 49, 64, 65, 100, 200):
        spans = lay_spans(length, tile, overlap, grid)
        total = torch.zeros(math.ceil(length / grid.reduction))
        for start, stop, weight in spans:
            assert start % grid.alignment == 0
            assert (weight >= 0).all()
            total[start // grid.reduction : math.ceil(stop / grid.reduction)] += weight
        torch.testing.assert_close(total, torch.ones_like(total))
        assert (spans[0].start, spans[-1].stop) == (0, length)
        assert all(tile <= stop - start < tile + grid.alignment for start, stop, _ in spans) or length < tile
        for (_, stop, _), (start, _, _) in pairwise(spans):
            assert stop - start >= min(overlap, tile - grid.alignment)


class Local(nn.Module):
    """Logits at a quarter of the resolution that depend on the pixels within 8 of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.near, self.far = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.sizes: list[tuple[int, ...]] = []

    @torch.no_grad()
    def segment(self, image: Tensor) -> Tensor:
        self.sizes.append(tuple(image.shape[-2:]))
        pooled = nn.functional.avg_pool2d(self.near(image).tanh(), 4, ceil_mode=True)
        return self.far(pooled)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (130, 70), (33, 200), (160, 161), (5, 300)])
def test_a_local_network_answers_as_for_the_whole_image(size):
    net, image = Local(), torch.randn(2, 3, *size)
    whole = net.segment(image)
    net.sizes.clear()
    tiled = TiledNet(net, Grid(4, 16), tile=64, overlap=32).segment(image)
    torch.testing.assert_close(tiled, whole)
    assert max(max(size) for size in net.sizes) < 64 + 16
    assert len(net.sizes) > 1 or max(size) < 64 + 16


def test_without_context_the_border_of_tiles_shows():
    """The test above would notice: what is cut off of the surroundings changes a local network's logits."""
    net, image = Local(), torch.randn(1, 3, 130, 70)
    tiled = TiledNet(net, Grid(4, 16), tile=64, overlap=0).segment(image)
    assert (tiled - net.segment(image)).abs().max() > 1e-2


def test_tiles_that_disagree_leave_no_seam():
    """Neighbours that answer 0 and 1 all over: nowhere a step larger than the ramp's."""
    answers = iter([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])

    def segment(image: Tensor) -> Tensor:
        return torch.full((1, 1, image.shape[-2] // 4, image.shape[-1] // 4), next(answers))

    image = torch.zeros(1, 3, 160, 160)
    blended = segment_in_tiles(segment, image, 64, 16, Grid(4, 16))[0, 0]
    assert (blended.amin(), blended.amax()) == (0, 1)
    for axis in (0, 1):
        assert blended.diff(dim=axis).abs().max() <= 1 / 2 + 1e-6  # 16 / 4 logits shared, half of them ramp


def test_small_images_pass_in_one_piece():
    net = Local()
    for tile in (None, 64, 63):  # 63 is rounded up to 64
        TiledNet(net, Grid(4, 16), tile, 16).segment(torch.zeros(1, 3, 64, 64))
    assert net.sizes == [(64, 64)] * 3


def test_channels_are_kept_in_order():
    net, image = Local(), torch.randn(1, 3, 100, 70)
    for tile in (None, 64):
        chosen = TiledNet(net, Grid(4, 16), tile, 32, [3, 0]).segment(image)
        torch.testing.assert_close(chosen, net.segment(image)[:, [3, 0]])


def test_half_precision_is_blended_in_float32():
    def segment(image: Tensor) -> Tensor:
        return torch.full((1, 2, image.shape[-2] // 4, image.shape[-1] // 4), 0.1, dtype=torch.bfloat16)

    blended = segment_in_tiles(segment, torch.zeros(1, 3, 128, 128), 64, 16, Grid(4, 16))
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, torch.full_like(blended, torch.tensor(0.1).bfloat16().item()))
