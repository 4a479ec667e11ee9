"""The graph category representation: class tokens take over what the patches nearest to them hold (MoRe).

Shapes: C class tokens, N patch tokens, k neighbours of a class, D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Neighbours(NamedTuple):
    """What each class is connected with."""

    nodes: Tensor
    """(B, C, k) int64 in [0, C + N): class tokens come before patches."""
    logits: Tensor
    """(B, C, k) of the edges, largest first."""


class GraphCategory(nn.Module):
    """Connect each class token with its nearest class and patch tokens, and gather these (MoRe, section 3.2).

    Args:
        channels: D.
        share: of the number of classes, how many neighbours a class has; at least one.
        step: how much of the neighbours a class token takes over.

    Examples:
        >>> GraphCategory(8)(torch.randn(2, 4, 8), torch.randn(2, 9, 8)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, channels: int, share: float = 0.5, step: float = 0.1):
        super().__init__()
        self.share, self.step = share, step
        self.head, self.tail = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.add, self.multiply = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, classes: Tensor, patches: Tensor) -> Tensor:
        """Class tokens (B, C, D) anew, of class tokens and patch tokens (B, N, D)."""
        heads, tails = self._project(classes, patches)
        found = self._nearest(heads, tails)
        index = found.nodes.flatten(1)[..., None].expand(-1, -1, tails.shape[-1])
        near = tails.gather(1, index).view(*found.nodes.shape, -1)  # (B, C, k, D)
        share = found.logits.softmax(-1)[..., None].to(near)
        gate = torch.tanh(heads[:, :, None] + (1 - share) * heads[:, :, None] + share * near)
        # the program multiplies two sums, over D each, where a product of vectors may have been meant
        weight = (near.float().sum(-1) * gate.float().sum(-1)).softmax(-1)[..., None].to(near)
        gathered = (weight * near).sum(2)  # (B, C, D)
        added = F.leaky_relu(self.add(classes + self.step * (heads + gathered)))
        out: Tensor = self.norm(added + F.leaky_relu(self.multiply(classes + self.step * heads * gathered)))
        return out

    def neighbours(self, classes: Tensor, patches: Tensor) -> Neighbours:
        """What `forward` connects."""
        return self._nearest(*self._project(classes, patches))

    def _project(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(classes), self.tail(torch.cat([classes, patches], dim=1))

    def _nearest(self, heads: Tensor, tails: Tensor) -> Neighbours:
        count = max(1, int(self.share * heads.shape[1]))
        edges = (heads * heads.shape[-1] ** -0.5) @ tails.mT  # (B, C, C + N)
        logits, nodes = edges.float().topk(count)
        return Neighbours(nodes, logits)
