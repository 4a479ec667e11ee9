"""Random numbers that belong to an image, whatever process, device or part of a batch it is in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers in [0, 1), float64, of the given shape for each of the seeds (B,) int64: (B, *shape).

    They are on the CPU. Seeds had best be there, too: reading them from a GPU waits for all its work.

    Examples:
        >>> one, two = uniform(torch.tensor([7, 7]), (2, 3))
        >>> torch.equal(one, two)
        True
    """
    generator = torch.Generator()
    drawn = [
        torch.rand(*shape, generator=generator.manual_seed(seed), dtype=torch.float64)
        for seed in seeds.tolist()
    ]
    return torch.stack(drawn)


def draw_cells(candidates: Tensor, seeds: Tensor, count: int) -> Tensor:
    """Draw cells without replacement, each candidate with equal probability: (B, count) flat indices.

    Candidates are (B, h, w) bool. Where an image has fewer than ``count``, others fill up.
    """
    drawn = uniform(seeds, candidates.shape[1:]).to(candidates.device, non_blocking=True)
    priority = drawn + candidates  # candidates come first
    return priority.flatten(1).topk(count).indices
