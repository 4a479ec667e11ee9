"""Segmentation of large images in tiles whose logits are blended where they overlap.

Along an axis every tile has a weight. Over what it shares with a neighbour the weight falls to zero across
the middle half: of the outer quarter, which the tile sees without its surroundings, nothing is kept. The
weights of all tiles sum to one at every position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_afa.ops.multi_scale import Segmenter


class Grid(NamedTuple):
    """How a network lays its logits over an image."""

    reduction: int  # image pixels per logit along a side
    alignment: int
    """Tiles start at its multiples, in pixels: the network's cells are then those of the whole image."""


class Span(NamedTuple):
    """One tile along one axis: pixels from ``start`` to before ``stop``, and its logits' weight in [0, 1]."""

    start: int
    stop: int
    weight: Tensor


def lay_spans(length: int, tile: int, overlap: int, grid: Grid) -> list[Span]:
    """Cut an axis into tiles: one span where the axis is not longer than a tile.

    Args:
        length: Of the axis in pixels.
        tile: Length of a tile in pixels, a multiple of the grid's alignment. The last one ends with the axis
            and may be longer, by less than the alignment.
        overlap: Least overlap of neighbours in pixels. They start at least one alignment apart.
        grid: Of the network.

    Examples:
        >>> [(span.start, span.stop) for span in lay_spans(100, tile=48, overlap=16, grid=Grid(4, 16))]
        [(0, 48), (32, 80), (48, 100)]
    """
    step = max(1, (tile - overlap) // grid.alignment) * grid.alignment
    last = max(0, length - tile) // grid.alignment * grid.alignment
    shared = (tile - step) // grid.reduction
    total = torch.zeros(math.ceil(length / grid.reduction))
    spans = []
    for start in (*range(0, last, step), last):
        stop = length if start == last else start + tile
        weight = _weight(math.ceil((stop - start) / grid.reduction), shared, start > 0, stop < length)
        spans.append(Span(start, stop, weight))
        _part(total, spans[-1], grid).add_(weight)
    return [span._replace(weight=span.weight / _part(total, span, grid)) for span in spans]


def segment_in_tiles(
    segment: Callable[[Tensor], Tensor], image: Tensor, tile: int, overlap: int, grid: Grid
) -> Tensor:
    """Logits (B, K, h, w), float32, of a normalised image (B, 3, H, W), made tile by tile.

    They are those of the whole image for a network that sees no farther than a quarter of the overlap. Tile
    and overlap are those of `lay_spans`.
    """
    rows, columns = (lay_spans(length, tile, overlap, grid) for length in image.shape[-2:])
    sides = [math.ceil(length / grid.reduction) for length in image.shape[-2:]]
    canvas = None
    for row, column in product(rows, columns):
        logits = segment(image[:, :, row.start : row.stop, column.start : column.stop]).float()
        if canvas is None:
            canvas = logits.new_zeros(*logits.shape[:2], *sides)
        weight = (row.weight[:, None] * column.weight).to(canvas.device)
        top, left = row.start // grid.reduction, column.start // grid.reduction
        canvas[:, :, top : top + weight.shape[0], left : left + weight.shape[1]] += logits * weight
    assert canvas is not None
    return canvas


class TiledNet:
    """Segments images of any size within a bounded memory.

    Args:
        net: Segments one tile.
        grid: Of the network.
        tile: Longest side that is passed in one piece, in pixels, rounded up to the grid's alignment. None
            passes every image in one piece.
        overlap: Least overlap of neighbours in pixels, not negative and below ``tile``.
        channels: Which logits to keep, in this order; None keeps all.
    """

    def __init__(
        self,
        net: Segmenter, grid: Grid, tile: int | None, overlap: int, channels: Sequence[int] | None = None,
    ):  # fmt: skip
        assert tile is None or 0 <= overlap < tile
        self.net, self.grid, self.overlap = net, grid, overlap
        self.tile = None if tile is None else math.ceil(tile / grid.alignment) * grid.alignment
        self.channels = None if channels is None else list(channels)

    def segment(self, image: Tensor) -> Tensor:
        """Return the logits (B, K or the channels kept, h, w) of a normalised image (B, 3, H, W)."""
        if self.tile is None or max(image.shape[-2:]) <= self.tile:
            return self._segment(image)
        return segment_in_tiles(self._segment, image, self.tile, self.overlap, self.grid)

    def _segment(self, image: Tensor) -> Tensor:
        logits = self.net.segment(image)
        return logits if self.channels is None else logits[:, self.channels]


def _weight(length: int, shared: int, at_start: bool, at_end: bool) -> Tensor:
    """Weights of ``length`` logits, falling over the ``shared`` ones at each end that has a neighbour."""
    context = shared // 4
    ramp = ((torch.arange(length) - context + 0.5) / max(1, shared - 2 * context)).clamp(0, 1)
    weight = torch.ones(length)
    if shared and at_start:
        weight *= ramp
    if shared and at_end:
        weight *= ramp.flip(0)
    return weight


def _part(total: Tensor, span: Span, grid: Grid) -> Tensor:
    first = span.start // grid.reduction
    return total[first : first + len(span.weight)]
