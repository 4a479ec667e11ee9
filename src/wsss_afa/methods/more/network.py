"""MoReNet: a plain ViT with a token for each class, whose products with the patches are localization maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_afa.methods.more.graph import GraphCategory
from wsss_afa.models.auxiliary_cam import AuxiliaryCAMNet, Levels
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.types import Activation, AffinityTokens


class MoReNet(AuxiliaryCAMNet):
    """`AuxiliaryCAMNet` on a ViT of C class tokens and registers, with a graph of classes and patches.

    Args:
        backbone: a plain ViT with a class token, which becomes C class tokens and the registers.
        num_classes: C.
        aux_block: see `AuxiliaryCAMNet`, as for ``decoder_dim``.
        registers: further leading tokens, which nothing reads.
        class_token_std: standard deviation of noise on the class tokens, which start alike otherwise.
        graph_share: see `GraphCategory`.
    """

    def __init__(
        self,
        backbone: TimmViT, num_classes: int, aux_block: int = -3, decoder_dim: int = 512,
        registers: int = 4, class_token_std: float = 0.0, graph_share: float = 0.5,
    ):  # fmt: skip
        super().__init__(backbone, num_classes, aux_block, decoder_dim)
        backbone.set_leading_tokens(num_classes, registers)
        assert isinstance(backbone.cls_token, nn.Parameter)
        if class_token_std:
            noise = class_token_std * torch.randn_like(backbone.cls_token)
            backbone.cls_token = nn.Parameter(backbone.cls_token.detach() + noise)
        self.graph = GraphCategory(backbone.channels[-1], graph_share)

    def class_tokens(self, levels: Levels) -> Tensor:
        """Class tokens (B, C, D) after the graph; patches get no gradient from them."""
        patches = levels.last.detach().flatten(2).mT  # (B, N, D)
        tokens: Tensor = self.graph(levels.leading[:, : self.num_classes], patches)
        return tokens

    def localization(self, levels: Levels) -> Tensor:
        """Raw localization maps (B, C, h, w): products of class tokens and patches."""
        return torch.einsum("bcd,bdhw->bchw", self.class_tokens(levels), levels.last)

    @torch.no_grad()
    def localize(self, image: Tensor) -> Activation:
        """Raw localization maps of an image (B, 3, H, W), as an activation."""
        return as_activation(self.localization(self.encode(image)))


def as_activation(maps: Tensor) -> Activation:
    """Raw maps (B, C, h, w) without gradient, in the form of an activation without tokens."""
    grid = (maps.shape[-2], maps.shape[-1])
    return Activation(maps.detach(), AffinityTokens(queries=[], keys=[], grid=grid))
