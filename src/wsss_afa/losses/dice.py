"""Overlap of classes with their labels (WeCLIP+, TPAMI 2025)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from wsss_afa.losses.counts import sum_over_processes
from wsss_afa.types import IGNORE_INDEX


def dice_loss(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """1 − mean over all K classes of 2 Σ p y / (Σ p + Σ y + 1e-7), in [0, 1].

    p is the soft-max, y one-hot, and sums are over the labelled pixels of the batch. A class that no pixel
    has counts with an overlap of 0, as in the released program.

    Args:
        logits: (B, K, h, w), resized to the label's size.
        label: (B, H, W) int64 in [0, C] or 255.
        shared_counts: sums are over the pixels of all processes, see `losses.counts`.
    """
    logits = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
    known = (label != IGNORE_INDEX)[:, None]
    probability = logits.softmax(1) * known
    one_hot = F.one_hot(label * known[:, 0], logits.shape[1]).movedim(-1, 1) * known  # (B, K, H, W)
    pixels = (0, 2, 3)
    both, processes = sum_over_processes((probability * one_hot).sum(pixels), shared_counts)
    either, _ = sum_over_processes(probability.sum(pixels) + one_hot.sum(pixels), shared_counts)
    loss = 1 - (2 * both / (either + 1e-7)).mean()
    return processes * loss - (processes - 1) * loss.detach()  # the mean over processes has its gradient
