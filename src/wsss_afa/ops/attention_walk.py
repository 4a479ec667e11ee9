"""Class maps carried along a frozen encoder's own attention, inside boxes around what they mark.

CLIP-ES (CVPR 2023) does it with the mean of the last maps of attention; WeCLIP (CVPR 2024) and ExCEL (CVPR
2025) choose among the maps and weigh pairs of tokens with an affinity that is learned.

Shapes beside the legend in `wsss_afa.types`: L maps of attention between patches; leading tokens are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses


def kept_layers(attention: Tensor) -> Tensor:
    """Which of the maps (L, B, N, N) leave at least the average mass to patches: (L, B) bool.

    The authors compare the sums over all pairs of P − A, with a learned affinity P that cancels out.
    """
    mass = attention.sum((-2, -1))
    return mass >= mass.mean(0)


def layer_affinity(attention: Tensor, gate: Tensor | None = None) -> Tensor:
    """Affinity (B, N, N) of patches from the maps of attention (L, B, N, N).

    It is the mean of all maps; with a ``gate`` (B, N, N), a learned affinity, the mean of those in
    `kept_layers`, pair by pair times the gate.
    """
    if gate is None:
        return attention.mean(0)
    kept = kept_layers(attention).to(attention.dtype)
    mean = torch.einsum("lb,lbij->bij", kept, attention) / (kept.sum(0) + 1e-5)[:, None, None]
    return mean * gate


def transition(affinity: Tensor, rounds: int = 3) -> Tensor:
    """Transition matrix (B, N, N) of two steps of a walk along an affinity (B, N, N).

    Columns, then rows, are scaled to a sum of 1, for some rounds (Sinkhorn); the matrix is averaged with its
    transpose and squared.
    """
    least = torch.finfo(affinity.dtype).tiny  # a gate may leave a token with nobody
    for _ in range(rounds):
        affinity = affinity / affinity.sum(1, keepdim=True).clamp(min=least)
        affinity = affinity / affinity.sum(2, keepdim=True).clamp(min=least)
    symmetric = (affinity + affinity.mT) / 2
    return symmetric @ symmetric


def box_mask(maps: Tensor, threshold: float, inclusive: bool = False) -> Tensor:
    """The boxes around all that stands out in each map: (B, G, h, w) bool of maps (B, G, h, w) in [0, 1].

    In steps of 1/255, cells above the threshold's share of the map's highest value are on. Each group of
    them that touch, corners included, has a box. A box that reaches the last row or column of the grid ends
    before it, as in the released programs, unless ``inclusive``.

    Examples:
        >>> box_mask(torch.tensor([[[[0.9, 0.1, 0.0], [0.2, 1.0, 0.0], [0.1, 0.0, 0.0]]]]), 0.5).int()
        tensor([[[[1, 1, 0],
                  [1, 1, 0],
                  [0, 0, 0]]]], dtype=torch.int32)
    """
    levels = (255 * maps).floor()
    on = levels > (threshold * levels.amax((-2, -1), keepdim=True).double()).floor()
    groups, (height, width) = connected_groups(on.flatten(0, 1)), maps.shape[-2:]
    cell = torch.arange(height * width, device=maps.device)
    sides = []
    for side, place in ((height, cell // width), (width, cell % width)):
        first, last = (_over_group(groups, place, way)[:, :-1, None] for way in ("amin", "amax"))
        end = last + 1 if inclusive else (last + 1).clamp(max=side - 1)
        line = torch.arange(side, device=maps.device)
        sides.append((line >= first) & (line < end))  # (n, N, side): of each cell's box
    rows = sides[0] & on.flatten(0, 1).flatten(1)[:, :, None]
    return (rows.mT.float() @ sides[1].float() > 0).view_as(on)


def connected_groups(on: Tensor) -> Tensor:
    """The first cell, row by row, of the group of each cell that is on: (n, N + 1) int64 of maps (n, h, w).

    Cells touch at sides and corners. Cells that are off, and a last one more, have N. Each cell points to a
    smaller one of its group, and to where that one points, until all point to the first (FastSV, arXiv
    1910.05971). The number of rounds is fixed, so that a GPU is not waited for.
    """
    (count, height, width), size = on.shape, on.shape[1] * on.shape[2]
    cells, off = torch.arange(size + 1, device=on.device), F.pad(~on.flatten(1), (0, 1), value=True)
    parent = torch.where(off, size, cells)
    for _ in range(2 * size.bit_length()):
        onward = parent.gather(1, parent)
        grid = -onward[:, :-1].view(count, 1, height, width).float()
        least = -F.max_pool2d(grid, 3, stride=1, padding=1).flatten(1)  # of all neighbours
        least = F.pad(least.long(), (0, 1), value=size).masked_fill(off, size)
        hooked = parent.scatter_reduce(1, parent, least, "amin")
        parent = torch.minimum(torch.minimum(hooked, least), onward)
    return parent


def _over_group(groups: Tensor, values: Tensor, way: str) -> Tensor:
    """The least or the largest of values (N,) of cells in each cell's group, (n, N + 1)."""
    spread = F.pad(values, (0, 1)).expand(len(groups), -1)
    found = torch.zeros_like(groups).scatter_reduce(1, groups, spread, way, include_self=False)
    return found.gather(1, groups)


def label_scores(maps: Tensor, classes: OwnClasses, size: Sequence[int]) -> Tensor:
    """Scores (B, G, H, W) of background and own classes, in [0, 1], of carried maps (B, G − 1, h, w).

    Each map is stretched to [0, 1] and resized; filling is 0. Background is 1 − the best class, so that an
    image without classes is background.
    """
    lifted = maps - maps.amin((-2, -1), keepdim=True)
    stretched = lifted / (lifted.amax((-2, -1), keepdim=True) + 1e-7)
    full = resize(stretched * classes.present[:, 1:, None, None], size)
    return torch.cat([1 - full.amax(1, keepdim=True), full], dim=1)


class AttentionWalk(nn.Module):
    """Carry class maps along attention: transition matrix × (map inside its boxes).

    Args:
        box_threshold: see `box_mask`; None masks nothing.
        inclusive: see `box_mask`.
        rounds: see `transition`.
    """

    def __init__(self, box_threshold: float | None = 0.4, inclusive: bool = False, rounds: int = 3):
        super().__init__()
        self.box_threshold, self.inclusive, self.rounds = box_threshold, inclusive, rounds

    @torch.no_grad()
    def forward(
        self, maps: Tensor, attention: Tensor, gate: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Maps (B, G, h, w) of [0, 1] on the token grid, carried along attention (L, B, N, N).

        The ``gate`` (B, N, N) is as in `layer_affinity`. With ``weights`` (B, G, h, w) the maps inside their
        boxes are multiplied by them. The result is at least 0; a map without a box becomes 0.
        """
        steps = transition(layer_affinity(attention, gate), self.rounds)
        if self.box_threshold is not None:
            maps = maps * box_mask(maps, self.box_threshold, self.inclusive)
        maps = maps if weights is None else maps * weights
        return (maps.flatten(2) @ steps.mT).view_as(maps)
