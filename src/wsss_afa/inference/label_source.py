"""Labels of whole images from a trained network and the images' tags, one for each background score.

A label is the best of background and the image's own classes; what differs is where their scores come from:

    cam        activation map against a constant β
    par        their soft-max, refined (AFA, section 3.4)
    affinity   their soft-max, propagated, then refined (AFA, section 3.3)
    seg        the network's probabilities; there is no β

A dense CRF may follow: it takes scores, scaled to a sum of 1, for probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.ops.cam import Localizer
from wsss_afa.methods.supervised import GivenLabels
from wsss_afa.ops.multi_scale import MultiScaleSegmentation, Segmenter
from wsss_afa.ops.labels import OwnClasses, best_class, merge_thresholds, own_classes
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.images import to_rgb
from wsss_afa.types import Batch

SOURCES = ("cam", "par", "affinity", "seg")
"""Where scores may come from."""


class Network(Localizer, Segmenter, Protocol):
    """What labels are asked of: an AFANet, or, of ``seg`` alone, anything that segments."""


class LabelSource(nn.Module):
    """Make labels of whole images.

    Args:
        source: one of ``SOURCES``.
        labeler: makes activation maps, refines and propagates them; of all sources but ``seg`` it must have
            the parts.
        protocol: segments for ``seg``; its CRF, if it has one, follows every source.
    """

    def __init__(self, source: str, labeler: PseudoLabeler | GivenLabels, protocol: MultiScaleSegmentation):
        super().__init__()
        assert source in SOURCES
        self.source = source
        self.labeler = labeler
        self.protocol = protocol

    @torch.no_grad()
    def forward(self, net: Network, batch: Batch, backgrounds: Sequence[float]) -> list[Tensor]:
        """Return one label (B, H, W) int64 in [0, C] for each background score.

        Args:
            net: in evaluation mode.
            batch: ``image``, ``class_label`` and ``valid_box`` are read.
            backgrounds: scores β of the background, in [0, 1]; of ``seg`` all labels are the same.
        """
        classes = own_classes(batch["class_label"])
        maps = self._maps(net, batch, classes, backgrounds)
        if self.protocol.crf is not None:
            maps = [self.protocol.refine(batch["image"], _to_probability(each)) for each in maps]
        filling = ~classes.present[:, :, None, None]
        return [best_class(each.masked_fill(filling, -1), classes) for each in maps]

    def _maps(
        self, net: Network, batch: Batch, classes: OwnClasses, backgrounds: Sequence[float]
    ) -> list[Tensor]:
        """Scores (B, G, H, W), at least 0, of background and own classes; 0 for filling."""
        image = batch["image"]
        if self.source == "seg":
            index = classes.ids[:, :, None, None].expand(-1, -1, *image.shape[-2:])
            own = self.protocol.probabilities(net, image).gather(1, index)
            return [own.masked_fill(~classes.present[:, :, None, None], 0)] * len(backgrounds)
        labeler = self.labeler
        assert isinstance(labeler, PseudoLabeler)
        activation = labeler.cam(net, image, channels=classes.channels)
        tags = classes.present[:, 1:].float()  # (B, G − 1): the maps are the own classes' alone
        if self.source == "cam":
            cam = activation.cam * tags[:, :, None, None]
            return [F.pad(cam, (0, 0, 0, 0, 1, 0), value=background) for background in backgrounds]
        with torch.autocast(image.device.type, enabled=False):
            rgb, own_tags = to_rgb(image, labeler.mean, labeler.std), own_classes(tags)
            if self.source == "par":
                return labeler.refined_maps(rgb, activation.cam, own_tags, backgrounds)
            affinity = labeler.affinity(net, activation.tokens)
            maps = labeler.propagated_maps(activation, affinity, own_tags, backgrounds)
            return labeler.refine_in_box(rgb, maps, batch["valid_box"])


def merge_labels(labels: Sequence[Tensor]) -> Tensor:
    """The only label, or those (B, H, W) of a low and a high score with 255 where they disagree."""
    return labels[0] if len(labels) == 1 else merge_thresholds(*labels)


def _to_probability(maps: Tensor) -> Tensor:
    """Scale scores (B, G, H, W), at least 0, to a sum of 1 in each pixel."""
    return maps / maps.sum(1, keepdim=True).clamp(min=1e-8)
