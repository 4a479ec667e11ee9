"""ToCoNet: a plain ViT with two classifiers, LargeFOV, and a projection of class tokens with its teacher."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from wsss_afa.models.auxiliary_cam import AuxiliaryCAMNet
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.projection_head import ProjectionHead


class ToCoNet(AuxiliaryCAMNet):
    """`AuxiliaryCAMNet` with a projection head, and a teacher that is a copy of this head alone.

    Args:
        backbone: a plain ViT with a class token.
        num_classes: C.
        aux_block: see `AuxiliaryCAMNet`, as for ``decoder_dim``.
        projection: the head, of a class token.
    """

    def __init__(
        self,
        backbone: TimmViT, num_classes: int, aux_block: int, decoder_dim: int, projection: ProjectionHead,
    ):  # fmt: skip
        super().__init__(backbone, num_classes, aux_block, decoder_dim)
        self.projection = projection
        self.teacher = copy.deepcopy(projection).requires_grad_(False)

    def class_tokens(self, image: Tensor) -> Tensor:
        """Class tokens (B, D) after the final norm of images of any size."""
        return self.backbone.encode(image, [-1]).leading[0][:, 0]

    @torch.no_grad()
    def teach(self, tokens: Tensor) -> Tensor:
        """The teacher's projection (B, E) of class tokens (B, D), without gradient."""
        taught: Tensor = self.teacher(tokens)
        return taught
