"""An ordinary segmentation network: a backbone and the all-MLP decoder, and nothing for weak supervision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsss_afa.models.backbones.mix_transformer import MixTransformer
from wsss_afa.models.decoders import MLPDecoder
from wsss_afa.models.backbones.timm_pyramid import TimmFeatures
from wsss_afa.types import Activation, AffinityTokens
from wsss_afa.errors import UserError


class SegmentationOutput(NamedTuple):
    """What one pass yields."""

    class_logits: Tensor
    """(B, C): by how much each class is ahead of background in its clearest pixel."""
    seg_logits: Tensor
    """(B, K, h1, w1), on the grid of the first feature map."""


class SegmentationNet(nn.Module):
    """Backbone and decoder, to be trained with a label for every pixel.

    Args:
        backbone: yields four feature maps.
        num_classes: C, foreground classes; background is added.
        decoder_dim: width of the decoder.
    """

    def __init__(self, backbone: MixTransformer | TimmFeatures, num_classes: int, decoder_dim: int = 256):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes}: at least one foreground class is needed")
        self.num_classes = num_classes
        self.backbone = backbone
        self.decoder = MLPDecoder(backbone.channels, num_classes + 1, decoder_dim)

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Logits of a normalised image (B, 3, H, W)."""
        logits = self.segment(image)
        return SegmentationOutput(_lead(logits).amax((-2, -1)), logits)

    def classify(self, image: Tensor) -> Tensor:
        """Class logits (B, C) alone."""
        return _lead(self.segment(image)).amax((-2, -1))

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h1, w1) alone."""
        logits: Tensor = self.decoder(self.backbone(image).features)
        return logits

    @torch.no_grad()
    def activate(self, image: Tensor) -> Activation:
        """By how much each class is ahead of background, (B, C, h1, w1), for an activation map."""
        lead = _lead(self.segment(image))
        return Activation(lead, AffinityTokens(queries=[], keys=[], grid=(lead.shape[-2], lead.shape[-1])))


def _lead(logits: Tensor) -> Tensor:
    """Logits of the classes minus that of background, (B, C, h, w)."""
    return logits[:, 1:] - logits[:, :1]
