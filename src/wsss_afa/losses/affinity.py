"""Affinity of pairs of tokens against affinity labels (AFA, equation 5)."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Protocol
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from wsss_afa.types import IGNORE_INDEX, AFAOutput, Batch, PseudoLabels
from wsss_afa.errors import UserError
from wsss_afa.ops.boxes import inside_box
from wsss_afa.losses.segmentation import SegmentationLogits
from wsss_afa.losses.classification import classification_loss
from wsss_afa.losses.classification import balanced_positive_weight
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.losses.counts import _count
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.methods.afa.loss import AFALoss


def affinity_loss(affinity: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Pull pairs of one class to 1 and pairs of two classes to 0 (AFA, equation 5).

    ½ Σ₊(1 − A)/(N⁺ + 1) + ½ Σ₋ A/(N⁻ + 1), over the whole batch.

    Args:
        affinity: (B, N, N) in [0, 1].
        label: (B, N, N) int64: 1 same, 0 different, 255 ignored.
        shared_counts: N⁺ and N⁻ are of all processes, see `AFALoss`.
    """
    return _pair_means(1 - affinity, affinity, label, shared_counts)


def affinity_cross_entropy(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Equation 5 with −log A and −log(1 − A) in the places of 1 − A and A; not the paper's.

    Its gradient in a logit z is A − 1 and A, where that of equation 5 is ∓A(1 − A): a pair that is quite
    wrong teaches most, instead of nothing.

    Args:
        logits: (B, N, N), A before the sigmoid.
        label: (B, N, N) int64: 1 same, 0 different, 255 ignored.
        shared_counts: N⁺ and N⁻ are of all processes, see `AFALoss`.
    """
    return _pair_means(F.softplus(-logits), F.softplus(logits), label, shared_counts)


def _pair_means(missed: Tensor, false: Tensor, label: Tensor, shared_counts: bool) -> Tensor:
    """Half of ``missed`` over the pairs of one class, by N⁺ + 1, and half of ``false`` over the others."""
    same, different = label == 1, label == 0
    counts, processes = _count(torch.stack([same.sum(), different.sum()]), shared_counts)
    sums = torch.stack([(missed * same).sum(), (false * different).sum()])
    return processes * (sums / (counts + 1)).sum() / 2
