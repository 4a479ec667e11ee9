"""A projection of class tokens and its averaged copy (DINO, ICCV 2021; ToCo, CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Three linear layers, normalisation, and a linear layer whose rows have length 1.

    Args:
        channels: of a token.
        hidden: width of the first layers.
        bottleneck: width of what is normalised.
        outputs: width of the projection, which is not normalised again.

    Examples:
        >>> ProjectionHead(channels=8, hidden=16, bottleneck=4, outputs=12)(torch.zeros(2, 8)).shape
        torch.Size([2, 12])
    """

    def __init__(self, channels: int, hidden: int = 2048, bottleneck: int = 256, outputs: int = 1024):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.directions = nn.Parameter(nn.Linear(bottleneck, outputs, bias=False).weight.detach())
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens (…, channels) to (…, outputs)."""
        unit = F.normalize(self.mlp(tokens), dim=-1)
        return F.linear(unit, F.normalize(self.directions, dim=-1))


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the parameters of a copy towards those of the original: θ ← m θ + (1 − m) θ_original."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast.to(slow), 1 - momentum)
