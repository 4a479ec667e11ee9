"""Sums over all pairs of pixels with a Gaussian of their features, without the pairs that are too far apart.

The pixels are cut into tiles of near features, as a k-d tree does it: each part is halved along the feature
in which it is widest. A pair of tiles whose bounding boxes are `REACH` standard deviations apart adds less
than exp(−REACH²/2) a pixel, and is left out; the others are computed exactly, each for both of its tiles.
That is for a CPU. A GPU would wait while pairs are chosen, so it computes all of them.

Legend: n pixels, d features, K channels; T tiles of t pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 6.0
"""Standard deviations beyond which a pair of tiles is left out: 1.5e-8 of what a pixel gives to itself."""


def gaussian_sum(features: Tensor, values: Tensor, tile: int) -> Tensor:
    """Return Σ_j exp(−|f_i − f_j|² / 2) v_j of every pixel i: (n, K).

    Args:
        features: (n, d), in standard deviations of the Gaussian.
        values: (n, K).
        tile: most pixels of a tile. Small tiles leave out more, large ones are computed in fewer steps.
    """
    if values.device.type != "cpu":
        return all_pairs(features, values, tile)
    count, depth = len(values), max(0, math.ceil(math.log2(max(1, len(values)) / tile)))
    filling = -count % 2**depth
    features = torch.cat([features, features[-1:].expand(filling, -1)])
    features = features - features.mean(0)  # smaller numbers, smaller rounding
    order = _tiles(features, depth)  # (T, t)
    tiled = F.pad(values, (0, 0, 0, filling))[order]  # (T, t, K)
    sums = torch.empty_like(tiled).flatten(0, 1)
    sums[order.flatten()] = _sum_of_tiles(features[order], tiled).flatten(0, 1)
    return sums[:count]


def all_pairs(features: Tensor, values: Tensor, rows: int) -> Tensor:
    """Return the same sums over all pairs, none left out, of so many ``rows``, pixels, at a time."""
    features = features - features.mean(0)
    minus, one = features.square().sum(-1, keepdim=True) / -2, torch.ones_like(features[:, :1])
    query, key = torch.cat([features, minus, one], -1), torch.cat([features, one, minus], -1)
    return torch.cat([(part @ key.T).exp_() @ values for part in torch.split(query, rows)])


def _tiles(features: Tensor, depth: int) -> Tensor:
    """Indices (2^depth, t) of pixels (n, d) that are near each other; n is a multiple of 2^depth."""
    order = torch.arange(len(features), device=features.device)[None]
    for _ in range(depth):
        part = features[order]
        widest = (part.amax(1) - part.amin(1)).argmax(1)[:, None, None]
        position = part.gather(2, widest.expand(-1, part.shape[1], 1))[..., 0]
        order = order.gather(1, position.argsort(1)).view(2 * len(order), -1)
    return order


def _sum_of_tiles(features: Tensor, values: Tensor) -> Tensor:
    """The sums of tiles (T, t, d) with values (T, t, K), over the pairs of tiles within reach."""
    minus, one = features.square().sum(-1, keepdim=True) / -2, torch.ones_like(features[..., :1])
    query, key = torch.cat([features, minus, one], -1), torch.cat([features, one, minus], -1)
    near = _near(features)
    columns = torch.split(near.nonzero()[:, 1], near.sum(1).tolist())
    sums, size = torch.zeros_like(values), features.shape[1]
    for i, own in enumerate(columns):  # of every tile those that come after it, itself first
        kernel = (query[i] @ key[own].flatten(0, 1).T).exp_()  # (t, m·t)
        sums[i] += kernel @ values[own].flatten(0, 1)
        if len(own) > 1:
            back = kernel[:, size:].T @ values[i]
            sums.index_add_(0, own[1:], back.view(-1, size, values.shape[-1]))
    return sums


def _near(features: Tensor) -> Tensor:
    """Which tiles (T, t, d) may be within reach of which that come after them: (T, T) bool."""
    low, high = features.amin(1), features.amax(1)
    squares = torch.zeros(len(low), len(low), device=low.device)
    for first, last in zip(low.T, high.T, strict=True):  # feature by feature: (T, T, d) is large
        gap = torch.maximum(first[:, None] - last, first - last[:, None]).clamp_(min=0)
        squares += gap.square_()
    return (squares < REACH**2).triu_()
