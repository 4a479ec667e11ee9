"""Counts over the processes of a run."""

from __future__ import annotations

from torch import Tensor, distributed


def _count(counts: Tensor, shared: bool) -> tuple[Tensor, int]:
    """Counts of all processes, and their number, for their losses are averaged; or own counts, and 1."""
    if not (shared and distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    counts = counts.clone()
    distributed.all_reduce(counts)
    return counts, distributed.get_world_size()
