"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010).

A value at every pixel is to be blurred by a Gaussian over the pixels' features, such as position and colour.
Features are laid into the hyperplane of d + 1 coordinates whose sum is 0. Its lattice A*_d tiles it with
simplices. Every pixel gives its value to the d + 1 vertices of its simplex (*splat*), the vertices exchange
values along the d + 1 axes of the lattice (*blur*), and every pixel takes its value from the same vertices
(*slice*). All three are sparse matrices, built once per image and shared by all channels and iterations.

Points of A*_d have integer coordinates y_0 … y_d that leave the same remainder by d + 1. The d differences
(y_{i+1} − y_i) / (d + 1) are therefore integers that name the point. One number is made of them, linear in
them, so that a step along an axis is the addition of a constant; the differences depend on two features
each, which keeps the number short and neighbours in the image near each other in memory.

Legend: d features · N pixels · P occupied points of the lattice · K channels.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.errors import UserError

_MARGIN = 2  # a vertex is up to 1 away from the simplex's first in every difference, and its neighbour 1 more


class SparseRows(NamedTuple):
    """A sparse matrix: of every row the columns that are not 0, and their values."""

    columns: Tensor  # int32: (rows, n) where all rows have n entries, else all rows' entries in one
    values: Tensor  # float32, like the columns
    starts: Tensor | None = None  # (rows + 1) int32: where rows start and end in flat columns

    def times(self, dense: Tensor) -> Tensor:
        """Product (rows, K) with ``dense`` (columns, K), by the fast code for weighted sums of embeddings."""
        flat = self.starts is not None
        return F.embedding_bag(
            self.columns,
            dense,
            self.starts,
            mode="sum",
            per_sample_weights=self.values,
            include_last_offset=flat,
        )


class PermutohedralLattice(NamedTuple):
    """A Gaussian kernel between N pixels, but for a constant factor. Made by `lattice`."""

    splat: SparseRows  # (P, N)
    blurs: list[SparseRows]  # d + 1 of (P, P)
    slice: SparseRows  # (N, P), the splat's transpose

    def __call__(self, values: Tensor) -> Tensor:
        """Return ``values`` (N, K) filtered; 2^d / (2^d + 1) of it would have the paper's scale."""
        points = self.splat.times(values)  # (P, K)
        for blur in self.blurs:
            points = blur.times(points)
        return self.slice.times(points)  # (N, K)

    def scaled(self, factor: Tensor) -> PermutohedralLattice:
        """The kernel with rows and columns multiplied by ``factor`` (N)."""
        splat = self.splat._replace(values=self.splat.values * factor[self.splat.columns])
        return self._replace(
            splat=splat, slice=self.slice._replace(values=self.slice.values * factor[:, None])
        )


def lattice(features: Tensor) -> PermutohedralLattice:
    """The kernel exp(−|f_i − f_j|² / 2), approximately.

    Args:
        features: (d, N) float32, in standard deviations of the kernel.

    Raises:
        UserError: features spread so widely that 64 bits cannot number the lattice's points.
    """
    first, turn, weights = _simplices(_elevate(features))
    vertices, steps = _vertices(first, turn)
    codes, order = vertices.flatten().sort()
    points, point, count = torch.unique_consecutive(codes, return_inverse=True, return_counts=True)
    starts = F.pad(count.cumsum(0, dtype=torch.int32), (1, 0))
    pixel = torch.arange(features.shape[1], dtype=torch.int32, device=features.device).repeat(len(turn))
    columns = torch.empty_like(pixel)
    columns[order] = point.int()
    return PermutohedralLattice(
        SparseRows(pixel[order], weights.flatten()[order], starts),
        [_blur(points, step) for step in steps],
        SparseRows(columns.view_as(turn).T.contiguous(), weights.T.contiguous()),
    )


def _elevate(features: Tensor) -> Tensor:
    """Lay features (d, N) into the hyperplane: (d + 1, N), in units of d + 1.

    Feature i points along (1, …, 1, −(i + 1), 0, …, 0) with i + 1 ones. Splat, blur and slice together have a
    standard deviation of (d + 1)·√(2/3), which is what a unit of a feature becomes.
    """
    d = len(features)
    position = torch.empty(d + 1, features.shape[1], device=features.device)
    later = torch.zeros_like(position[0])
    for i in range(d, 0, -1):
        feature = features[i - 1] * math.sqrt(2 / 3 / (i * (i + 1)))
        torch.sub(later, feature, alpha=i, out=position[i])
        later += feature
    position[0] = later
    return position


def _simplices(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex that every position (d + 1, N) lies in, and its place there.

    A simplex has one vertex of each remainder. From that of remainder 0, the lattice point nearest by
    coordinates, a step along one axis leads to that of remainder 1, and so on to d. The axes take turns 1 … d
    in the order of their coordinate's distance from the first vertex, smallest first; the largest, turn 0, is
    left out. Returned are, each (d + 1, N), the first vertex in units of d + 1, the turn of each axis, int64,
    and the barycentric weights of the vertices in the order of the walk.
    """
    size = len(position)
    first = position.round()
    rank = _rank(position - first) + first.sum(0).to(torch.int8)
    correction = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)  # the sum of coordinates must be 0
    first += correction
    rank += size * correction
    turn = (-rank % size).long()
    distance = torch.empty_like(position).scatter_(0, turn, position - first)  # in the order of turns
    weights = distance.roll(-1, 0) - distance
    weights[0] += 1
    return first, turn, weights


def _rank(values: Tensor) -> Tensor:
    """Place of each value (d + 1, N) in its column's descending order, int8."""
    rank = torch.zeros_like(values, dtype=torch.int8)
    for i, j in itertools.combinations(range(len(values)), 2):
        below = values[i] < values[j]
        rank[i] += below
        rank[j] += ~below
    return rank


def _vertices(first: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (d + 1, N) of the vertices in the order of the walk, and what a step along each axis adds."""
    differences = first.diff(dim=0)  # (d, N)
    low = differences.amin(1, keepdim=True) - _MARGIN
    extents = [int(extent) + 1 for extent in (differences.amax(1) + _MARGIN - low[:, 0]).tolist()]
    units = [math.prod(extents[i + 1 :]) for i in range(len(extents))]  # what each difference counts
    count = math.prod(extents)
    if count >= 2**63:
        raise UserError(f"a lattice of {count:.0e} points: need fewer than 2^63; raise sxy or srgb")
    digits = (differences - low).to(torch.int32 if count < 2**31 else torch.int64)
    steps = digits.new_tensor([here - before for before, here in itertools.pairwise([0, *units, 0])])
    codes = torch.empty_like(turn, dtype=digits.dtype).scatter_(0, turn, steps[:, None].expand_as(turn))
    codes[0] = (digits * digits.new_tensor(units)[:, None]).sum(0)
    for k in range(1, len(codes)):
        codes[k] += codes[k - 1]
    return codes, steps


def _blur(points: Tensor, step: Tensor) -> SparseRows:
    """Add half of both neighbours along an axis, where they exist; ``points`` (P) are sorted codes."""
    here = torch.arange(len(points), dtype=torch.int32, device=points.device)
    target = points + step
    ahead = torch.searchsorted(points, target, out_int32=True).clamp_(max=len(points) - 1)
    source = (points[ahead] == target).nonzero()[:, 0]
    target = ahead[source]
    columns, values = here[:, None].repeat(1, 3), points.new_zeros(len(points), 3, dtype=torch.float32)
    columns[source, 1], columns[target, 2] = target, source.int()
    values[:, 0] = 1
    values[source, 1] = values[target, 2] = 0.5
    return SparseRows(columns, values)
