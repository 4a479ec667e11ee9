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
from wsss_afa.ops.labels import OwnClasses, best_class, merge_thresholds, own_classes
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import Batch

SEGMENTATION = "seg"
"""The source that every method has."""


class LabelSource(nn.Module):
    """Make labels of whole images.

    Args:
        method: in evaluation mode.
        source: ``seg``, or one of the method's sources.
        protocol: segments for ``seg``; its CRF, if it has one, follows every source.

    Raises:
        UserError: the method has no such source.
    """

    def __init__(self, method: Method, source: str, protocol: MultiScaleSegmentation):
        super().__init__()
        known = (*method.sources, SEGMENTATION)
        if source not in known:
            raise UserError(
                f"source={source}: this checkpoint has none such; set source to {', '.join(known)}"
            )
        self.method = method
        self.source = source
        self.protocol = protocol

    @torch.no_grad()
    def forward(self, batch: Batch, backgrounds: Sequence[float]) -> list[Tensor]:
        """Return one label (B, H, W) int64 in [0, C] for each background score.

        Args:
            batch: ``image``, ``class_label`` and ``valid_box`` are read.
            backgrounds: scores β of the background, in [0, 1]; of ``seg`` all labels are the same.
        """
        classes = own_classes(batch["class_label"])
        if self.source == SEGMENTATION:
            maps = [self._segmentation(batch["image"], classes)] * len(backgrounds)
        else:
            maps = self.method.maps(batch, self.source, backgrounds)
        if self.protocol.crf is not None:
            maps = [self.protocol.refine(batch["image"], _to_probability(each)) for each in maps]
        filling = ~classes.present[:, :, None, None]
        return [best_class(each.masked_fill(filling, -1), classes) for each in maps]

    def _segmentation(self, image: Tensor, classes: OwnClasses) -> Tensor:
        """Probabilities (B, G, H, W) of background and own classes; 0 for filling."""
        index = classes.ids[:, :, None, None].expand(-1, -1, *image.shape[-2:])
        own = self.protocol.probabilities(self.method, image).gather(1, index)
        return own.masked_fill(~classes.present[:, :, None, None], 0)


def merge_labels(labels: Sequence[Tensor]) -> Tensor:
    """The only label, or those (B, H, W) of a low and a high score with 255 where they disagree."""
    return labels[0] if len(labels) == 1 else merge_thresholds(*labels)


def _to_probability(maps: Tensor) -> Tensor:
    """Scale scores (B, G, H, W), at least 0, to a sum of 1 in each pixel."""
    return maps / maps.sum(1, keepdim=True).clamp(min=1e-8)
