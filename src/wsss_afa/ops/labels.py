"""From class scores to labels of pixels: own classes, thresholds, what is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.ops.boxes import inside_box
from wsss_afa.types import IGNORE_INDEX


class OwnClasses(NamedTuple):
    """Background and the classes of each image, compacted to the front; G is the most any image has."""

    ids: Tensor
    """(B, G) int64 in [0, C], ascending where present."""
    present: Tensor
    """(B, G) bool; false is filling."""

    @property
    def channels(self) -> Tensor:
        """Foreground channel of each class but the background, (B, G − 1)."""
        return self.ids[:, 1:] - 1

    @property
    def compacted(self) -> OwnClasses:
        """The classes of maps that have these channels alone: ids are positions among the own classes."""
        return OwnClasses(
            torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids), self.present
        )

    def expand(self, label: Tensor) -> Tensor:
        """Positions among the own classes (B, H, W) to class ids; 255 stays."""
        table = F.pad(self.ids, (0, IGNORE_INDEX + 1 - self.ids.shape[1]), value=IGNORE_INDEX)
        return table.gather(1, label.flatten(1)).view_as(label)


def own_classes(class_label: Tensor) -> OwnClasses:
    """Compact multi-hot tags (B, C) to the ids of background and the classes present."""
    present = F.pad(class_label > 0, (1, 0), value=True)  # (B, K)
    most = max(2, int(present.sum(dim=1).max()))  # a foreground channel even if no image has a tag
    present, ids = present.int().sort(dim=1, descending=True, stable=True)
    return OwnClasses(ids[:, :most], present[:, :most].bool())


def with_backgrounds(maps: Tensor, backgrounds: Sequence[float]) -> list[Tensor]:
    """Maps (B, C, h, w) behind the constant score of the background: (B, C + 1, h, w) for each such score."""
    return [F.pad(maps, (0, 0, 0, 0, 1, 0), value=background) for background in backgrounds]


def class_scores(cam: Tensor, classes: OwnClasses, background: float) -> Tensor:
    """Soft-max over background, whose score is the constant β, and each image's own classes.

    Of maps (B, C, h, w) in [0, 1] it makes scores (B, G, h, w) in [0, 1], which are 0 for filling.
    """
    (stacked,) = with_backgrounds(cam, [background])  # (B, K, h, w)
    index = classes.ids[:, :, None, None].expand(-1, -1, *cam.shape[-2:])
    own = stacked.gather(1, index).masked_fill(~classes.present[:, :, None, None], float("-inf"))
    return own.softmax(dim=1)


def best_class(scores: Tensor, classes: OwnClasses) -> Tensor:
    """Class ids (B, H, W) int64 of the best of the scores (B, G, H, W)."""
    best = scores.max(dim=1).indices  # on a CPU nine times as fast as argmax
    return classes.ids.gather(1, best.flatten(1)).view_as(best)


def cam_label(cam: Tensor, class_label: Tensor, low: float, high: float) -> Tensor:
    """Threshold activation maps to a label (B, H, W) int64 in [0, C] or 255.

    Args:
        cam: (B, C, H, W) in [0, 1].
        class_label: (B, C) multi-hot; other classes never win.
        low: scores up to here are background.
        high: scores above ``low`` and up to here are ignored; ``low`` for a label without ignored pixels.

    Examples:
        >>> import torch
        >>> cam_label(torch.tensor([[[[0.2, 0.5, 0.9]]]]), torch.ones(1, 1), low=0.35, high=0.55)
        tensor([[[  0, 255,   1]]])
    """
    score, best = (cam * class_label[:, :, None, None]).max(dim=1)
    label = (best + 1).masked_fill_(score <= high, IGNORE_INDEX)
    return label.masked_fill_(score <= low, 0)


def merge_thresholds(low: Tensor, high: Tensor) -> Tensor:
    """Merge labels (B, H, W) int64 that were made with the low and the high score of background.

    It is foreground where the high one says so, background where both do, and 255 between.

    Examples:
        >>> import torch
        >>> merge_thresholds(low=torch.tensor([[[2, 2, 0]]]), high=torch.tensor([[[2, 0, 0]]]))
        tensor([[[  2, 255,   0]]])
    """
    label = high.masked_fill(high == 0, IGNORE_INDEX)
    return label.masked_fill_((high == 0) & (low == 0), 0)


def ignore_outside(label: Tensor, box: Tensor) -> Tensor:
    """Set the label (B, H, W) to 255 outside the box (B, 4)."""
    return label.masked_fill(~inside_box(box, (label.shape[-2], label.shape[-1])), IGNORE_INDEX)
