"""VOC's mean intersection over union, from one confusion matrix over the whole set; precision of tags."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from wsss_afa.types import IGNORE_INDEX


class SegmentationMetrics(Metric):
    """One confusion matrix, summed over images and processes; never an average of per-image scores.

    Args:
        num_outputs: K, background included.

    Example:
        >>> metric = SegmentationMetrics(num_outputs=2)
        >>> metric.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 255]]))
        >>> metric.compute()["miou"]
        tensor(1., dtype=torch.float64)
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_outputs: int):
        super().__init__()
        self.num_outputs = num_outputs
        zeros = torch.zeros(num_outputs, num_outputs, dtype=torch.long)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, H, W) int64 in [0, C].
            target: (B, H, W) int64 in [0, C], or 255 where nothing counts.
        """
        counted = target != IGNORE_INDEX
        pairs = target[counted] * self.num_outputs + prediction[counted]
        counts = torch.bincount(pairs, minlength=self.num_outputs**2)
        self.confusion += counts.view(self.num_outputs, self.num_outputs)

    def compute(self) -> dict[str, Tensor]:
        """Return ``iou`` (K,) in [0, 1], NaN for classes without a true pixel, and their mean ``miou``."""
        confusion = self.confusion.double()
        hits, truth = confusion.diag(), confusion.sum(1)
        iou = hits / (truth + confusion.sum(0) - hits)
        iou = iou.masked_fill(truth == 0, float("nan"))
        return {"iou": iou, "miou": iou.nanmean()}


class TagAveragePrecision(Metric):
    """Mean over classes of the average precision of their logits; classes that no image has are left out.

    Example:
        >>> metric = TagAveragePrecision()
        >>> metric.update(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[1, 0], [0, 0]]))
        >>> metric.compute()
        tensor(1.)
    """

    full_state_update = False
    logits: list[Tensor]
    tags: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", default=[], dist_reduce_fx="cat")
        self.add_state("tags", default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, tags: Tensor) -> None:
        """Keep a batch.

        Args:
            logits: (B, C).
            tags: (B, C) int64 in {0, 1}.
        """
        self.logits.append(logits)
        self.tags.append(tags)

    def compute(self) -> Tensor:
        """Return the mean in [0, 1], NaN if no image has a tag."""
        logits, tags = dim_zero_cat(self.logits), dim_zero_cat(self.tags)
        shown = tags.any(0).nonzero().flatten().tolist()
        scores = [binary_average_precision(logits[:, c], tags[:, c]) for c in shown]
        return torch.stack(scores).mean() if scores else torch.tensor(float("nan"), device=logits.device)
