"""A plain ViT that is classified, and so has activation maps, at two depths: the frame of ToCo and MoRe.

Shapes beside the legend in `wsss_afa.types`: D channels, P leading tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.decoders import LargeFOV
from wsss_afa.types import Activation, AffinityTokens


class Levels(NamedTuple):
    """What one pass of the encoder yields."""

    leading: Tensor
    """Class tokens and registers after the final norm, (B, P, D)."""
    last: Tensor
    """Patch tokens after the final norm, (B, D, h, w)."""
    aux: Tensor
    """Patch tokens of the auxiliary block, not normed, (B, D, h, w)."""

    def first(self, count: int) -> Levels:
        """Those of the first images."""
        return Levels(*(each[:count] for each in self))


class AuxiliaryCAMNet(nn.Module):
    """A ViT, a classifier of its last tokens, one of an earlier block's, and LargeFOV on the last tokens.

    Last tokens are smoothed over the whole image; those of an earlier block tell objects from each other.

    Args:
        backbone: a plain ViT.
        num_classes: C.
        aux_block: whose tokens the auxiliary classifier sees, from 0, or from the end where negative.
        decoder_dim: width of the decoder.

    Raises:
        UserError: there is no class, or the backbone is no plain ViT.
    """

    def __init__(self, backbone: TimmViT, num_classes: int, aux_block: int = -3, decoder_dim: int = 512):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes={num_classes}: at least one foreground class is needed")
        if not isinstance(backbone, TimmViT):
            kind = type(backbone).__name__
            raise UserError(f"{kind} has no tokens of single blocks; need a plain ViT: use backbone=vit_base")
        self.num_classes, self.backbone, self.aux_block = num_classes, backbone, aux_block
        channels = backbone.channels[-1]
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.decoder = LargeFOV(channels, num_classes + 1, decoder_dim)

    def encode(self, image: Tensor) -> Levels:
        """Tokens of a normalised image (B, 3, H, W)."""
        encoded = self.backbone.encode(image, [self.aux_block, -1])
        return Levels(encoded.leading[1], encoded.maps[1], encoded.maps[0])

    def class_logits(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """Class logits (B, C) of the last tokens and of the auxiliary ones, each globally max-pooled."""
        return _pooled(self.classifier, levels.last), _pooled(self.aux_classifier, levels.aux)

    def classify(self, image: Tensor) -> Tensor:
        """Class logits (B, C) of the last tokens alone."""
        return _pooled(self.classifier, self.backbone.encode(image, [-1]).maps[0])

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h, w)."""
        logits: Tensor = self.decoder(self.backbone.encode(image, [-1]).maps)
        return logits

    @torch.no_grad()
    def activate(self, image: Tensor) -> Activation:
        """Raw maps (B, 2C, h, w), those of the last tokens before the auxiliary ones."""
        return self.activation(self.encode(image))

    @torch.no_grad()
    def activation(self, levels: Levels) -> Activation:
        """The raw maps of tokens that are there."""
        cam, aux = self.classifier(levels.last), self.aux_classifier(levels.aux)
        grid = (cam.shape[-2], cam.shape[-1])
        return Activation(torch.cat([cam, aux], dim=1), AffinityTokens(queries=[], keys=[], grid=grid))


def _pooled(classifier: nn.Conv2d, tokens: Tensor) -> Tensor:
    pooled = tokens.amax((-2, -1))[:, :, None, None]
    return F.conv2d(pooled, classifier.weight).flatten(1)
