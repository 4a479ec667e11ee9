"""Counts over the processes of a run."""

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
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.affinity import affinity_cross_entropy
from wsss_afa.losses.affinity import _pair_means
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import SegmentationLoss
from wsss_afa.methods.afa.loss import AFALoss


def _count(counts: Tensor, shared: bool) -> tuple[Tensor, int]:
    """Counts of all processes, and their number, for their losses are averaged; or own counts, and 1."""
    if not (shared and distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    counts = counts.clone()
    distributed.all_reduce(counts)
    return counts, distributed.get_world_size()
