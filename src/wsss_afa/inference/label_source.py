"""Labels of whole images from a trained method and the images' tags, one for each background score.

A label is the best of background and the image's own classes. Their scores come from one of the method's
sources, such as its activation map (``cam``), or from the segmentation (``seg``), which has no background
score. A dense CRF may follow: it takes scores, scaled to a sum of 1, for probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.base import Method
from wsss_afa.ops.labels import best_class, merge_thresholds, own_classes
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import Batch

SEGMENTATION = "seg"
"""The source that every method has."""


class LabelSource(nn.Module):
    """Make labels of whole images by a method in evaluation mode.

    The source is ``seg`` or one of the method's own; a UserError refuses others. The protocol segments for
    ``seg``; its CRF, if it has one, follows every source.
    """

    def __init__(self, method: Method, source: str, protocol: MultiScaleSegmentation):
        super().__init__()
        if source not in (known := (*method.sources, SEGMENTATION)):
            what = f"source={source}: this checkpoint has none such"
            raise UserError(f"{what}; set source to {', '.join(known)}")
        self.method, self.source, self.protocol = method, source, protocol

    @property
    def has_background(self) -> bool:
        """Whether labels depend on a background score: neither of ``seg`` nor where maps score it."""
        return self.source != SEGMENTATION and not self.method.scores_background

    def backgrounds(self, value: float | Sequence[float] | None) -> list[float]:
        """Background scores: one, or low and high; those of the method's own training where none is given.

        A UserError says that they are not in [0, 1], not ascending, or that the source has none.
        """
        if not self.has_background:
            if value is not None:
                what = f"background={value}: source={self.source} has no background score"
                raise UserError(f"{what}; leave it out")
            return [0.0]  # its one label does not depend on the score
        given = self.method.backgrounds if value is None else value
        scores = [float(each) for each in (given if isinstance(given, Sequence) else [given])]
        if len(scores) not in (1, 2) or not 0 <= scores[0] <= scores[-1] <= 1:
            raise UserError(f"background={value}: need a number in [0, 1], or [low, high] with low ≤ high")
        return scores

    @torch.no_grad()
    def forward(self, batch: Batch, backgrounds: Sequence[float]) -> list[Tensor]:
        """Return one label (B, H, W) int64 in [0, C] for each background score β in [0, 1].

        The batch's ``image``, ``class_label`` and ``valid_box`` are read. Of ``seg`` all labels are the same.
        """
        image, classes = batch["image"], own_classes(batch["class_label"])
        filling = ~classes.present[:, :, None, None]  # (B, G, 1, 1)
        if self.source == SEGMENTATION:
            index = classes.ids[:, :, None, None].expand(-1, -1, *image.shape[-2:])
            own = self.protocol.probabilities(self.method, image).gather(1, index)  # (B, G, H, W)
            maps = [own.masked_fill(filling, 0)] * len(backgrounds)
        else:
            maps = self.method.maps(batch, self.source, backgrounds)
            maps = maps if self.has_background else maps * len(backgrounds)
        if self.protocol.crf is not None:
            sums = [each.sum(1, keepdim=True).clamp(min=1e-8) for each in maps]
            maps = [self.protocol.refine(image, each / total) for each, total in zip(maps, sums, strict=True)]
        return [best_class(each.masked_fill(filling, -1), classes) for each in maps]


def merge_labels(labels: Sequence[Tensor]) -> Tensor:
    """The only label, or those (B, H, W) of a low and a high score with 255 where they disagree."""
    return labels[0] if len(labels) == 1 else merge_thresholds(*labels)
