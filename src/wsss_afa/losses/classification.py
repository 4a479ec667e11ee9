"""Image tags against class logits: the multi-label soft margin loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError


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
    """Images without a class over images with it, (C,), of the tags (n, C) of all training images.

    The weights are kept in [1 / most, most], lest a class of few images shake the training; a class without
    images has 1.

    Examples:
        >>> balanced_positive_weight(torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]]))
        tensor([0.3333, 3.0000])
    """
    present = tags.float().sum(0)
    weight = ((len(tags) - present) / present.clamp(min=1)).clamp(1 / most, most)
    return weight.masked_fill(present == 0, 1.0)


class ClassificationLoss(nn.Module):
    """Module face of `classification_loss`.

    Args:
        tag_smoothing: ε in [0, 1). Worth trying (0.05 to 0.2) where some tags are wrong or missing.
        positive_weight: C factors on the loss of present classes, or ``balanced``, which makes them from the
            training tags. Worth trying where a class is in few images, and is missed.

    Raises:
        UserError: the smoothing is out of its range, or a weight is not positive.
    """

    positive_weight: Tensor | None

    def __init__(self, tag_smoothing: float = 0.0, positive_weight: str | Sequence[float] | None = None):
        super().__init__()
        if not 0 <= tag_smoothing < 1:
            raise UserError(f"tag_smoothing={tag_smoothing}, need a share in [0, 1): try 0.1")
        self.tag_smoothing = tag_smoothing
        self.balanced = positive_weight == "balanced"
        self.register_buffer("positive_weight", None, persistent=False)
        if positive_weight is not None and not self.balanced:
            if isinstance(positive_weight, str) or min(positive_weight) <= 0:
                raise UserError(f"positive_weight={positive_weight}: need null, balanced or numbers above 0")
            self.positive_weight = torch.tensor(list(positive_weight), dtype=torch.float)

    def balance(self, tags: Tensor) -> None:
        """Make ``balanced`` weights of the training tags (n, C); check the number of those that are given.

        Raises:
            UserError: there is not one weight for each class.
        """
        if self.balanced:
            self.positive_weight = balanced_positive_weight(tags)
        elif self.positive_weight is not None and len(self.positive_weight) != tags.shape[1]:
            raise UserError(
                f"positive_weight has {len(self.positive_weight)} numbers, need {tags.shape[1]}, one per "
                "class, or null, or balanced"
            )

    def forward(self, logits: Tensor, class_label: Tensor) -> Tensor:
        """The loss of logits (B, C) against multi-hot tags (B, C)."""
        assert not self.balanced or self.positive_weight is not None, "balance comes first"
        return classification_loss(logits, class_label, self.tag_smoothing, self.positive_weight)
