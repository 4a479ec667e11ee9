"""Two heads that tell from a feature map (B, D, h, w) which classes an image has, and where they fire."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError


class PooledClassifier(nn.Conv2d):
    """Pool each channel over the image, then classify: AFA's head.

    Args:
        channels: D.
        num_classes: C.
        top_k: positions that are averaged, see `pool`.
        dropout: share of the pooled features dropped in training.
    """

    def __init__(self, channels: int, num_classes: int, top_k: float | None = 1, dropout: float = 0.0):
        super().__init__(channels, num_classes, 1, bias=False)
        self.top_k, self.dropout = top_k, nn.Dropout(dropout)

    def forward(self, feature: Tensor) -> Tensor:
        """Class logits (B, C)."""
        pooled = self.dropout(pool(feature, self.top_k))[:, :, None, None]
        return F.conv2d(pooled, self.weight).flatten(1)

    def activate(self, feature: Tensor) -> Tensor:
        """Raw class activation map (B, C, h, w), without gradient for the weights."""
        return F.conv2d(feature, self.weight.detach())


class PositionClassifier(nn.Conv2d):
    """Standardise each channel, classify every position, and pool the logits: for an encoder that is frozen.

    A channel of frozen features has a mean that says nothing of classes, and only this head can remove it.
    The bias begins as if every image had one class, and stays out of the activation map.

    Args:
        channels: D.
        num_classes: C.
        top_k: positions that are averaged, see `pool`.
        dropout: share of the standardised features, each position for itself, dropped in training. With few
            images half of them keeps a class from resting on the few channels that tell it best, and its map
            from shrinking to its most telling part.
    """

    def __init__(self, channels: int, num_classes: int, top_k: float | None = 1, dropout: float = 0.0):
        super().__init__(channels, num_classes, 1)
        self.top_k, self.dropout = top_k, nn.Dropout(dropout)
        self.standardize = nn.BatchNorm2d(channels, affine=False)
        assert self.bias is not None
        nn.init.constant_(self.bias, -math.log(num_classes))

    def forward(self, feature: Tensor) -> Tensor:
        """Class logits (B, C)."""
        standardized = self.dropout(self.standardize(feature))
        return pool(F.conv2d(standardized, self.weight, self.bias), self.top_k)

    def activate(self, feature: Tensor) -> Tensor:
        """Raw class activation map (B, C, h, w), without gradient for the weights, by running statistics."""
        norm = self.standardize
        standardized = F.batch_norm(feature, norm.running_mean, norm.running_var, eps=norm.eps)
        return F.conv2d(standardized, self.weight.detach())


def pool(maps: Tensor, top_k: float | None) -> Tensor:
    """Mean of the largest values of each map (B, C, h, w) → (B, C).

    Args:
        maps: any.
        top_k: how many; a number below 1 is a share of all positions, and None is all of them.

    Examples:
        >>> pool(torch.tensor([[[[0.0, 4.0], [1.0, 3.0]]]]), top_k=0.5)
        tensor([[3.5000]])
    """
    positions = maps.flatten(2)
    if top_k is None:
        return positions.mean(-1)
    if top_k == 1:
        return positions.amax(-1)
    count = positions.shape[-1]  # any, in an exported graph
    share = torch.sym_max(1, torch.sym_int(top_k * count))  # type: ignore[no-untyped-call]
    best = share if top_k < 1 else torch.sym_min(int(top_k), count)  # type: ignore[no-untyped-call]
    return positions.topk(best, dim=-1).values.mean(-1)


CLASSIFIERS: dict[str, type[PooledClassifier] | type[PositionClassifier]] = {
    "pooled": PooledClassifier,
    "positions": PositionClassifier,
}
"""Heads by the name that a configuration gives them."""


def make_classifier(
    kind: str, channels: int, num_classes: int, top_k: float | None, dropout: float = 0.0
) -> PooledClassifier | PositionClassifier:
    """The head of that name.

    Args:
        kind: a key of `CLASSIFIERS`.
        channels: D.
        num_classes: C.
        top_k: see `pool`.
        dropout: share of features dropped in training.

    Raises:
        UserError: there is no such head, the number of positions is none, or the share is not in [0, 1).
    """
    if kind not in CLASSIFIERS:
        raise UserError(f"method.classifier={kind} is not known; need one of {', '.join(CLASSIFIERS)}")
    if top_k is not None and not (0 < top_k < 1 or (top_k >= 1 and top_k == int(top_k))):
        raise UserError(
            f"pool_top_k={top_k}: use 1 (max pooling), more, a share below 1, or null (average pooling)"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"method.classifier_dropout={dropout}: need a share in [0, 1), such as 0.5")
    return CLASSIFIERS[kind](channels, num_classes, top_k, dropout)
