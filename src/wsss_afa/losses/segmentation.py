"""Labels of pixels against segmentation logits."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Protocol
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from wsss_afa.types import IGNORE_INDEX, AFAOutput, Batch, PseudoLabels
from wsss_afa.errors import UserError
from wsss_afa.ops.boxes import inside_box
from wsss_afa.losses.classification import classification_loss
from wsss_afa.losses.classification import balanced_positive_weight
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.affinity import affinity_cross_entropy
from wsss_afa.losses.affinity import _pair_means
from wsss_afa.losses.counts import _count
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.methods.afa.loss import AFALoss


class SegmentationLogits(Protocol):
    """Any network's output with logits of every pixel."""

    @property
    def seg_logits(self) -> Tensor:
        """(B, K, h, w)."""
        ...


def balanced_cross_entropy(logits: Tensor, label: Tensor, shared_counts: bool = False) -> Tensor:
    """Half the mean cross-entropy of background pixels plus half that of foreground pixels.

    A half without pixels is 0 and has no gradient (in the released program it is NaN).

    Args:
        logits: (B, K, h, w), resized to the label's size.
        label: (B, H, W) int64 in [0, C] or 255.
        shared_counts: the means are over the pixels of all processes, see `AFALoss`.
    """
    logits = F.interpolate(logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False)
    pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)  # (B·H·W, K): a view where logits lie channels last
    label = label.flatten()
    per_pixel = F.cross_entropy(pixels, label, ignore_index=IGNORE_INDEX, reduction="none")
    background = label == 0
    halves = torch.stack([background, ~background & (label != IGNORE_INDEX)])
    counts, processes = _count(halves.sum(1), shared_counts)
    sums = (per_pixel * halves).sum(1)
    return processes * (sums / counts.clamp(min=1)).sum() / 2


class SegmentationLoss(nn.Module):
    """Cross-entropy, for labels that are given: the mean over all labelled pixels of the batch.

    Args:
        shared_counts: the mean is over the pixels of all processes, see `AFALoss`.
    """

    dense_energy: None = None
    """There is no regulariser."""

    def __init__(self, shared_counts: bool = True):
        super().__init__()
        self.shared_counts = shared_counts

    def forward(
        self, output: SegmentationLogits, batch: Batch, labels: PseudoLabels, rgb: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the term ``seg``, and again as ``total``; 0 without gradient if no pixel has a label.

        Args:
            output: of the training pass; ``seg_logits`` (B, K, h, w) are read.
            batch: not read.
            labels: ``segmentation`` is read.
            rgb: not read.
        """
        label = labels.segmentation
        assert label is not None
        logits = F.interpolate(
            output.seg_logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False
        )
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
        count, processes = _count((label != IGNORE_INDEX).sum(), self.shared_counts)
        loss = processes * loss / count.clamp(min=1)
        return {"seg": loss, "total": loss}
