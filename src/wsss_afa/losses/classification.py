"""Image tags against class logits."""

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
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.affinity import affinity_cross_entropy
from wsss_afa.losses.affinity import _pair_means
from wsss_afa.losses.counts import _count
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.methods.afa.loss import AFALoss


def classification_loss(
    logits: Tensor, class_label: Tensor, smoothing: float = 0.0, positive_weight: Tensor | None = None
) -> Tensor:
    """Multi-label soft margin loss.

    Args:
        logits: (B, C).
        class_label: (B, C) multi-hot tags.
        smoothing: ε in [0, 1): tags of 0 and 1 become ε/2 and 1 − ε/2.
        positive_weight: (C,) factor on the loss of present classes; None is 1.
    """
    target = class_label * (1 - smoothing) + smoothing / 2
    if positive_weight is None:
        return F.multilabel_soft_margin_loss(logits.float(), target)
    return F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=positive_weight)


def balanced_positive_weight(tags: Tensor, most: float = 100.0) -> Tensor:
    """Images without a class over images with it, (C,), in [1 / most, most]; 1 for a class without images.

    Args:
        tags: (n, C) of all training images.
        most: bound that keeps a class of few images from shaking the training.

    Examples:
        >>> balanced_positive_weight(torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]]))
        tensor([0.3333, 3.0000])
    """
    present = tags.float().sum(0)
    weight = ((len(tags) - present) / present.clamp(min=1)).clamp(1 / most, most)
    return weight.masked_fill(present == 0, 1.0)
