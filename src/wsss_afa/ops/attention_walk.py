"""Class maps carried along a frozen encoder's own attention, inside boxes around what they mark.

CLIP-ES (CVPR 2023) does it with the mean of the last maps of attention; WeCLIP (CVPR 2024) and ExCEL (CVPR
2025) choose among the maps and weigh pairs of tokens with an affinity that is learned.

Shapes beside the legend in `wsss_afa.types`: L maps of attention between patches; leading tokens are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses

_WITHIN_A_MAP = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
"""Neighbours of a cell in a stack of maps: the eight of its own map."""


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
    groups, _ = ndimage.label(on.flatten(0, 1).cpu().numpy(), _WITHIN_A_MAP)
    mask, cut = np.zeros(groups.shape, bool), 0 if inclusive else 1
    height, width = (side - cut for side in groups.shape[1:])
    for index, rows, columns in ndimage.find_objects(groups):
        mask[index, rows.start : min(rows.stop, height), columns.start : min(columns.stop, width)] = True
    return torch.from_numpy(mask).to(maps.device).view_as(on)


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
