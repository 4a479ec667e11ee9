"""Pairs of tokens: who is near whom, and who belongs together (AFA, section 3.3)."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce

from wsss_afa.types import IGNORE_INDEX, AffinityTokens


@lru_cache(maxsize=16)
def radius_mask(height: int, width: int, radius: int, device: torch.device | None = None) -> Tensor:
    """Pairs of cells of a token grid at most ``radius`` cells apart along each axis (Chebyshev distance).

    The mask (N, N) bool is symmetric and true on the diagonal. It is kept for the next call: do not write
    into it.

    Examples:
        >>> radius_mask(1, 4, radius=1).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    rows = torch.arange(height, device=device).repeat_interleave(width)
    columns = torch.arange(width, device=device).repeat(height)
    cells = torch.stack([rows, columns])  # (2, N)
    return ((cells[:, :, None] - cells[:, None, :]).abs() <= radius).all(0)


def affinity_label(label: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """Which pairs of tokens share a class: (B, N, N) int64, 1 same, 0 different, 255 ignored.

    The label (B, H, W) int64 in [0, C] or 255 is taken at the nearest pixel to each token of the grid (h, w).
    A pair is ignored where either token is 255 or they are farther apart than the radius, in cells.

    Examples:
        >>> affinity_label(torch.tensor([[[3, 3, 0, 255]]]), grid=(1, 4), radius=2)
        tensor([[[  1,   1,   0, 255],
                 [  1,   1,   0, 255],
                 [  0,   0,   1, 255],
                 [255, 255, 255, 255]]])
    """
    tokens = F.interpolate(label[:, None].float(), size=grid, mode="nearest").flatten(1).long()  # (B, N)
    return _pairs(tokens, radius_mask(*grid, radius, label.device))


def pair_label(tokens: Tensor) -> Tensor:
    """Which pairs of labelled tokens share a class, however far apart: (B, N, N) as in `affinity_label`.

    The labels are (B, N) int64 in [0, C] or 255. A token's pair with itself is ignored, as in ToCo and MoRe.

    Examples:
        >>> pair_label(torch.tensor([[3, 3, 0, 255]]))
        tensor([[[255,   1,   0, 255],
                 [  1, 255,   0, 255],
                 [  0,   0, 255, 255],
                 [255, 255, 255, 255]]])
    """
    others = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return _pairs(tokens, others)


def _pairs(tokens: Tensor, counted: Tensor) -> Tensor:
    """Pairs of labels (B, N) that are equal, 1, or not, 0; 255 where a label is, or a pair is not counted."""
    pairs, known = (tokens[:, :, None] == tokens[:, None, :]).long(), tokens != IGNORE_INDEX
    return pairs.masked_fill_(~(known[:, :, None] & known[:, None, :] & counted), IGNORE_INDEX)


@torch.no_grad()
def attention_affinity(tokens: AffinityTokens) -> Tensor:
    """Mean over heads of the scaled, soft-maxed attention, made symmetric: (B, N, N) float32 in [0, 1].

    A row of attention sums to 1, which leaves hundreds of tokens next to nothing each. So each row is taken
    relative to its largest value before it is averaged with the column. One head's matrix is made at a time.
    """
    total: Tensor | None = None
    for queries, keys in zip(tokens.queries, tokens.keys, strict=True):
        for query, key in zip(queries.float().unbind(1), keys.float().unbind(1), strict=True):  # (B, N, d)
            attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)  # (B, N, N)
            total = attention if total is None else total.add_(attention)
    assert total is not None
    relative = total / total.amax(dim=-1, keepdim=True)
    return (relative + relative.mT) / 2


def feature_affinity(
    features: Tensor, scale: float = 1.0, center: str | None = None, shared: bool = False
) -> Tensor:
    """Sigmoid of `feature_products`, an affinity of the tokens of a map (B, D, h, w): (B, N, N) in [0, 1]."""
    return feature_products(features, scale, center, shared).sigmoid()


def feature_products(
    features: Tensor, scale: float = 1.0, center: str | None = None, shared: bool = False
) -> Tensor:
    """Scaled products FᵀF of the tokens of a map (B, D, h, w): (B, N, N), in float32.

    Without ``center`` that is all, as in WeCLIP. With it tokens have length 1 first, and the mean of the
    products is taken from them: the mean of the whole ``batch``, as in ExCEL, or of each ``image``. A batch
    that is ``shared`` is that of all processes, which must then call this at the same time.
    """
    with torch.autocast(features.device.type, enabled=False):
        tokens = features.float().flatten(2)  # (B, D, N)
        tokens = tokens if center is None else F.normalize(tokens, dim=1)
        products = tokens.mT @ tokens
        if center is not None:
            axes = (-2, -1) if center == "image" else (-3, -2, -1)
            mean = products.mean(axes, keepdim=True)
            products = products - (_of_all_processes(mean) if shared and center == "batch" else mean)
        return scale * products


def _of_all_processes(mean: Tensor) -> Tensor:
    """The mean of equal parts of a batch, whose gradient reaches the parts of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    total: Tensor = all_reduce(mean)  # type: ignore[no-untyped-call]
    return total / distributed.get_world_size()
