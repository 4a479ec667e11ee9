"""Affinity of pairs of tokens against affinity labels (AFA, equation 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.losses.counts import count_over_processes


def affinity_loss(affinity: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Pull pairs of one class to 1 and pairs of two classes to 0 (AFA, equation 5).

    ½ Σ₊(1 − A)/(N⁺ + 1) + ½ Σ₋ A/(N⁻ + 1), over the whole batch.

    Args:
        affinity: (B, N, N) in [0, 1].
        label: (B, N, N) int64: 1 same, 0 different, 255 ignored.
        shared_counts: N⁺ and N⁻ are of all processes, see `losses.counts`.
    """
    return _pair_means(1 - affinity, affinity, label, shared_counts)


def affinity_cross_entropy(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Equation 5 with −log A and −log(1 − A) in the places of 1 − A and A; not the paper's.

    Its gradient in a logit z is A − 1 and A, where that of equation 5 is ∓A(1 − A): a pair that is quite
    wrong teaches most, instead of nothing. Logits (B, N, N) are A before the sigmoid; the rest is as in
    `affinity_loss`.
    """
    return _pair_means(F.softplus(-logits), F.softplus(logits), label, shared_counts)


class AffinityLoss(nn.Module):
    """Module face of the paper's `affinity_loss`, or of `affinity_cross_entropy` where that is asked for."""

    def __init__(self, cross_entropy: bool = False, shared_counts: bool = True):
        super().__init__()
        self.cross_entropy = cross_entropy
        self.shared_counts = shared_counts

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of affinity logits (B, N, N) against labels of pairs (B, N, N)."""
        if self.cross_entropy:
            return affinity_cross_entropy(logits, label, self.shared_counts)
        return affinity_loss(logits.sigmoid(), label, self.shared_counts)


def _pair_means(missed: Tensor, false: Tensor, label: Tensor, shared_counts: bool) -> Tensor:
    """Half of ``missed`` over the pairs of one class, by N⁺ + 1, and half of ``false`` over the others."""
    same, different = label == 1, label == 0
    counts, processes = count_over_processes(torch.stack([same.sum(), different.sum()]), shared_counts)
    sums = torch.stack([(missed * same).sum(), (false * different).sum()])
    return processes * (sums / (counts + 1)).sum() / 2
