"""Counts over the processes of a run, for losses that divide by pixels or pairs.

Lightning averages the processes' gradients. A loss that divides by its own process's count weighs a pixel
more where there are few; one that divides by everybody's count, times the number of processes, is the loss of
the whole batch on one process. Processes must then compute the same terms at the same time.
"""

from __future__ import annotations

from torch import Tensor, distributed


def count_over_processes(counts: Tensor, shared: bool) -> tuple[Tensor, int]:
    """Counts of all processes and the number of processes; own counts and 1 where they are not shared."""
    if not (shared and distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    counts = counts.clone()
    distributed.all_reduce(counts)
    return counts, distributed.get_world_size()


def sum_over_processes(sums: Tensor, shared: bool) -> tuple[Tensor, int]:
    """Sums of all processes, with the gradient of the own ones, and the number of processes; see above."""
    totals, processes = count_over_processes(sums.detach(), shared)
    return sums + (totals - sums.detach()), processes
