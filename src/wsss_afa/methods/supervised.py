"""Training on labels that are given: the second stage on pseudo labels, or full supervision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.losses.segmentation import pixel_cross_entropy
from wsss_afa.methods.base import Method
from wsss_afa.models.decoders import MLPDecoder
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.types import Activation, AffinityTokens, Batch, FeatureBackbone


class SegmentationNet(nn.Module):
    """An ordinary segmentation network of C classes and background: a backbone and the all-MLP decoder.

    Raises:
        UserError: there is no class.
    """

    def __init__(self, backbone: FeatureBackbone, num_classes: int, decoder_dim: int = 256):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes}: at least one foreground class is needed")
        self.num_classes, self.backbone = num_classes, backbone
        self.decoder = MLPDecoder(backbone.channels, num_classes + 1, decoder_dim)

    def classify(self, image: Tensor) -> Tensor:
        """By how much each class is ahead of background in its clearest pixel, (B, C)."""
        return class_lead(self.segment(image)).amax((-2, -1))

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h1, w1), on the grid of the first feature map."""
        logits: Tensor = self.decoder(self.backbone(image).features)
        return logits

    @torch.no_grad()
    def activate(self, image: Tensor) -> Activation:
        """By how much each class is ahead of background, (B, C, h1, w1), for an activation map."""
        lead = class_lead(self.segment(image))
        return Activation(lead, AffinityTokens(queries=[], keys=[], grid=(lead.shape[-2], lead.shape[-1])))


def class_lead(logits: Tensor) -> Tensor:
    """Logits of the classes minus that of background, (B, C, h, w), of logits (B, K, h, w)."""
    return logits[:, 1:] - logits[:, :1]


class Supervised(Method):
    """Mean cross-entropy over all labelled pixels, the loss ``seg``, in one phase from step 0 on.

    With ``shared_counts`` the mean is over the pixels of all processes; see `losses.counts`.
    """

    needs_labels = True
    net: SegmentationNet

    def __init__(
        self, backbone: FeatureBackbone, num_classes: int, phases: Mapping[str, int],
        weights: Mapping[str, float], decoder_dim: int = 256, shared_counts: bool = True,
    ):  # fmt: skip
        super().__init__(SegmentationNet(backbone, num_classes, decoder_dim), num_classes, phases, weights)
        self.cam = MultiScaleCAM(scales=(1.0,), mirror=False)
        self.shared_counts = shared_counts

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The cross-entropy.

        Raises:
            UserError: the batch has no labels.
        """
        if "mask" not in batch:
            raise UserError("method=supervised has no labels to learn from: name their folder, labels=DIR")
        logits = self.segment(batch["image"])
        return {"seg": pixel_cross_entropy(logits, batch["mask"], self.shared_counts)}

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class and segmentation logits of one pass."""
        logits = self.segment(image)
        return class_lead(logits).amax((-2, -1)), logits
