"""The losses of AFA and their sum."""

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
from wsss_afa.losses.counts import _count
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import SegmentationLoss


class AFALoss(nn.Module):
    """All terms and their sum: L_cls + λ_seg L_seg + λ_aff L_aff (+ λ_reg L_reg) (AFA, equation 12).

    Args:
        seg_weight: λ_seg.
        affinity_weight: λ_aff.
        reg_weight: λ_reg.
        dense_energy: the regulariser; None leaves it out.
        tag_smoothing: ε in [0, 1) of the classification loss. Worth trying (0.05 to 0.2) where some tags are
            wrong or missing.
        positive_weight: C factors on the classification loss of present classes. Worth trying where a class
            is in few images, and is missed; a configuration's ``balanced`` makes them from the training tags.
        shared_counts: L_seg and L_aff divide by the pixels and pairs of all processes, so that the mean of
            the processes' losses is that of the whole batch on one; else each divides by its own, as an
            accumulated part of a batch does. Processes must then compute the same terms at the same time.
        affinity_cross_entropy: L_aff is `affinity_cross_entropy` instead of the paper's `affinity_loss`.

    Raises:
        UserError: the smoothing is out of its range, or a weight is not positive.
    """

    positive_weight: Tensor | None

    def __init__(
        self,
        seg_weight: float = 0.1,
        affinity_weight: float = 0.1,
        reg_weight: float = 0.01,
        dense_energy: DenseEnergyLoss | None = None,
        tag_smoothing: float = 0.0,
        positive_weight: Sequence[float] | None = None,
        shared_counts: bool = True,
        affinity_cross_entropy: bool = False,
    ):
        super().__init__()
        if not 0 <= tag_smoothing < 1:
            raise UserError(f"loss.tag_smoothing is {tag_smoothing}, need a share in [0, 1): try 0.1")
        if isinstance(positive_weight, str) or (positive_weight is not None and min(positive_weight) <= 0):
            raise UserError(f"loss.positive_weight={positive_weight}, need numbers above 0, one per class")
        self.tag_smoothing = tag_smoothing
        factors = None if positive_weight is None else torch.tensor(list(positive_weight), dtype=torch.float)
        self.register_buffer("positive_weight", factors, persistent=False)
        self.weights = {"cls": 1.0, "seg": seg_weight, "aff": affinity_weight, "reg": reg_weight}
        self.dense_energy = dense_energy
        self.shared_counts = shared_counts
        self.affinity_cross_entropy = affinity_cross_entropy

    def classification(self, logits: Tensor, class_label: Tensor) -> Tensor:
        """L_cls of logits (B, C) against multi-hot tags (B, C)."""
        return classification_loss(logits, class_label, self.tag_smoothing, self.positive_weight)

    def affinity(self, output: AFAOutput, label: Tensor) -> Tensor:
        """L_aff of the training pass against the label of pairs (B, N, N)."""
        if self.affinity_cross_entropy:
            return affinity_cross_entropy(output.affinity_logits, label, self.shared_counts)
        return affinity_loss(output.affinity, label, self.shared_counts)

    def forward(
        self, output: AFAOutput, batch: Batch, labels: PseudoLabels, rgb: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return every term that has a label, unweighted, and their weighted sum as ``total``.

        Args:
            output: of the training pass.
            batch: tags and boxes are read.
            labels: pseudo labels; a part that is None has no term.
            rgb: (B, 3, H, W) in [0, 1]; only the regulariser reads it.
        """
        terms = {"cls": self.classification(output.class_logits, batch["class_label"])}
        if labels.segmentation is not None:
            terms["seg"] = balanced_cross_entropy(output.seg_logits, labels.segmentation, self.shared_counts)
            if self.dense_energy is not None:
                assert rgb is not None
                terms["reg"] = self.dense_energy(
                    output.seg_logits, rgb, labels.segmentation, batch["valid_box"]
                )
        if labels.affinity is not None:
            terms["aff"] = self.affinity(output, labels.affinity)
        return terms | {"total": self.total(terms)}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Weighted sum of the terms, by name."""
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
