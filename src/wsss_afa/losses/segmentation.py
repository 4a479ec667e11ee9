"""Labels of pixels against segmentation logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.losses.counts import count_over_processes
from wsss_afa.types import IGNORE_INDEX


def balanced_cross_entropy(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Half the mean cross-entropy of background pixels plus half that of foreground pixels.

    A half without pixels is 0 and has no gradient (in the released programs it is NaN).

    Args:
        logits: (B, K, h, w), resized to the label's size.
        label: (B, H, W) int64 in [0, C] or 255.
        shared_counts: the means are over the pixels of all processes, see `losses.counts`.
    """
    logits = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
    pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)  # (B·H·W, K): a view where logits lie channels last
    label = label.flatten()
    per_pixel = F.cross_entropy(pixels, label, ignore_index=IGNORE_INDEX, reduction="none")
    background = label == 0
    halves = torch.stack([background, ~background & (label != IGNORE_INDEX)])
    counts, processes = count_over_processes(halves.sum(1), shared_counts)
    sums = (per_pixel * halves).sum(1)
    return processes * (sums / counts.clamp(min=1)).sum() / 2


def pixel_cross_entropy(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Mean cross-entropy of all labelled pixels of the batch; 0 without gradient if there is none.

    Logits, labels and shared counts are as in `balanced_cross_entropy`.
    """
    logits = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
    count, processes = count_over_processes((label != IGNORE_INDEX).sum(), shared_counts)
    return processes * loss / count.clamp(min=1)
