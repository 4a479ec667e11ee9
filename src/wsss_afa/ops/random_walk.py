"""Random-walk propagation of activation maps along learned affinity (AFA, equations 6 and 7)."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_afa.ops.affinity import radius_mask


def propagate(
    maps: Tensor, affinity: Tensor, radius: int = 8, power: int = 2, num_log_steps: int = 0
) -> Tensor:
    """Maps carried once along T, the affinity to the ``power`` with each column scaled by its sum + 0.1.

    Args:
        maps: (B, G, h, w), G maps of any meaning on the token grid.
        affinity: (B, N, N) in [0, 1]; not written to.
        radius: pairs farther apart than this, in cells per axis, get no weight.
        power: exponent of the affinity; more sharpens it.
        num_log_steps: times that T is squared: 2 ** num_log_steps steps of the walk.

    Examples:
        A cell that fires, one that belongs to it, and one that belongs to nobody, 0.1 being in each sum:

        >>> import torch
        >>> together = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> propagate(torch.tensor([[[[1.0, 0.0, 1.0]]]]), together)
        tensor([[[[0.4762, 0.4762, 0.9091]]]])
    """
    height, width = maps.shape[-2:]
    near = radius_mask(height, width, radius, affinity.device)
    transition = affinity.masked_fill(~near, 0.0).pow_(power)
    transition /= transition.sum(dim=1, keepdim=True) + 0.1  # an isolated token fades, not divides by zero
    for _ in range(num_log_steps):
        transition = transition @ transition
    return (maps.flatten(2) @ transition).view_as(maps)


class RandomWalkPropagation(nn.Module):
    """Module face of `propagate`, which explains the settings."""

    def __init__(self, radius: int = 8, power: int = 2, num_log_steps: int = 0):
        super().__init__()
        self.radius = radius
        self.power = power
        self.num_log_steps = num_log_steps

    def forward(self, maps: Tensor, affinity: Tensor) -> Tensor:
        """Return ``maps`` (B, G, h, w) propagated along ``affinity`` (B, N, N)."""
        return propagate(maps, affinity, self.radius, self.power, self.num_log_steps)
