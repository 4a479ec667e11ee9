"""The losses of AFA: classification, segmentation, affinity and the dense-energy regulariser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from wsss_afa.types import IGNORE_INDEX, AFAOutput, Batch, PseudoLabels, UserError, inside_box


class SegmentationLogits(Protocol):
    """Any network's output with logits of every pixel."""

    @property
    def seg_logits(self) -> Tensor:
        """(B, K, h, w)."""
        ...


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


def _count(counts: Tensor, shared: bool) -> tuple[Tensor, int]:
    """Counts of all processes, and their number, for their losses are averaged; or own counts, and 1."""
    if not (shared and distributed.is_available() and distributed.is_initialized()):
        return counts, 1
    counts = counts.clone()
    distributed.all_reduce(counts)
    return counts, distributed.get_world_size()


class DenseEnergyLoss(nn.Module):
    """Neighbours of like colour should be segmented alike (Tang et al., ECCV 2018; AFA, section 3.5).

    −weight/B · Σ_ij gate_i K_ij S_iᵀ S_j with K a Gaussian of position and colour and
    gate_i = max(0, inside_i − max_k S_ik), 1 where the pseudo label is 255. Images and probabilities are
    halved first. The kernel is summed over all pairs, in chunks; the gate has no gradient and the energy's
    gradient is −2 · gate · (K S), as in the released program.

    Args:
        weight: of the energy, which grows with the number of pairs.
        sigma_position: standard deviation in pixels of the full image.
        sigma_color: standard deviation in RGB, 0…255 scale.
        scale: factor of the image's sides.
        chunk: pixels whose kernel row is held at once.
    """

    def __init__(
        self,
        weight: float = 1e-7,
        sigma_position: float = 100.0,
        sigma_color: float = 15.0,
        scale: float = 0.5,
        chunk: int = 512,
    ):
        super().__init__()
        self.weight = weight
        self.sigma_position = sigma_position
        self.sigma_color = sigma_color
        self.scale = scale
        self.chunk = chunk

    def forward(self, logits: Tensor, rgb: Tensor, label: Tensor, box: Tensor) -> Tensor:
        """Return the energy, a scalar ≤ 0.

        Args:
            logits: (B, K, h, w) segmentation logits.
            rgb: (B, 3, H, W) in [0, 1].
            label: (B, H, W) int64 pseudo label.
            box: (B, 4) the image part of the crop; nothing else has energy.
        """
        size = (int(self.scale * rgb.shape[-2]), int(self.scale * rgb.shape[-1]))
        full = F.interpolate(logits.float(), size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        probability = F.interpolate(full.softmax(1), size=size, mode="bilinear", align_corners=False)
        colour = F.interpolate(255.0 * rgb, size=size, mode="nearest")
        inside = inside_box(box, (rgb.shape[-2], rgb.shape[-1]))
        roi = F.interpolate(inside[:, None].to(rgb), size=size, mode="nearest")
        unknown = F.interpolate((label == IGNORE_INDEX)[:, None].to(rgb), size=size, mode="nearest") > 0
        masked = probability * roi
        with torch.no_grad():
            gate = (roi - probability.amax(1, keepdim=True)).masked_fill(unknown, 1.0).clamp_(min=0)
            smooth = gate * self._filter(colour, masked)
        energy = -(masked * smooth).sum() / len(rgb)
        return self.weight * (2 * energy - energy.detach())  # its value, and twice its partial gradient

    def _filter(self, colour: Tensor, maps: Tensor) -> Tensor:
        """K applied to maps (B, K, h, w), exactly."""
        height, width = maps.shape[-2:]
        grid = torch.meshgrid(
            torch.arange(height, device=maps.device), torch.arange(width, device=maps.device), indexing="ij"
        )
        position = torch.stack(grid).flatten(1).to(maps) / (self.sigma_position * self.scale)  # (2, n)
        features = torch.cat(
            [position.expand(len(maps), -1, -1), colour.flatten(2) / self.sigma_color], dim=1
        ).mT.contiguous()  # (B, n, 5)
        features = features - features.mean(1, keepdim=True)  # smaller numbers, smaller rounding
        half_norm = features.square().sum(-1) / 2  # (B, n)
        values = maps.flatten(2).mT  # (B, n, K)
        rows = []
        for part, part_norm in zip(
            torch.split(features, self.chunk, 1), torch.split(half_norm, self.chunk, 1), strict=True
        ):
            offset = -(part_norm[:, :, None] + half_norm[:, None, :])
            rows.append(torch.baddbmm(offset, part, features.mT).exp_() @ values)
        return torch.cat(rows, dim=1).mT.reshape_as(maps)


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
