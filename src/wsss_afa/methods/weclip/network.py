"""WeCLIPNet: a frozen CLIP, and DINOv2 beside it in WeCLIP+; fusion and decoder of their tokens are trained.

Shapes beside the legend in `wsss_afa.types`: D channels of a token, F those of a fused map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.methods.clip_cam import CLIPNet
from wsss_afa.models.backbones.timm_vit import Encoded, TimmViT
from wsss_afa.models.text import TextFeatures
from wsss_afa.models.token_decoder import TokenFusion, TransformerDecoder
from wsss_afa.ops.images import resize


class Pass(NamedTuple):
    """One pass of everything but the last block."""

    encoded: Encoded
    fused: list[Tensor]
    """CLIP's map (B, F, h, w), and DINOv2's on the same grid where there is one."""
    logits: list[Tensor]
    """Segmentation logits (B, K, h, w) of each fused map."""

    @property
    def segmentation(self) -> Tensor:
        """Mean of the logits, (B, K, h, w)."""
        return torch.stack(self.logits).mean(0)


class WeCLIPNet(CLIPNet):
    """`CLIPNet` with a `TokenFusion` of CLIP's blocks, one of DINOv2's last, and a decoder that they share.

    Args:
        backbone: CLIP's image tower with its projection, frozen.
        num_classes: C.
        texts: directions of classes and backgrounds.
        dino: a frozen tower of another kind, whose last tokens are segmented, too; None has none.
        fused_blocks: how many of CLIP's blocks before the last are fused; None is all.
        logit_scale: see `CLIPNet`, as for ``cam_input``.
        decoder_dim: F, width of fusion and decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: of each of its blocks.
        dropout: of the fusion.

    Raises:
        UserError: a tower is to be trained, or is none of the kind that is needed.
    """

    def __init__(
        self, backbone: TimmViT, num_classes: int, texts: TextFeatures, dino: TimmViT | None = None,
        fused_blocks: int | None = None, logit_scale: float = 100.0, cam_input: int = -2,
        decoder_dim: int = 256, decoder_depth: int = 3, decoder_heads: int = 8, dropout: float = 0.1,
    ):  # fmt: skip
        last = len(getattr(backbone, "blocks", ())) - 1  # is run apart
        count = last if fused_blocks is None else fused_blocks
        if last > 0 and not 1 <= count <= last:
            raise UserError(f"method.fused_blocks={count}: need 1 to {last}, or null for all: choose one")
        super().__init__(backbone, num_classes, texts, logit_scale, cam_input, range(last - count, last))
        self.fused_blocks = list(range(last - count, last))
        self.fusion = TokenFusion(backbone.channels[-1], count, decoder_dim, dropout)
        self.decoder = TransformerDecoder(decoder_dim, num_classes + 1, decoder_depth, decoder_heads)
        if dino is not None:
            if not dino.frozen:
                raise UserError("the second tower stays frozen here: set method.dino.frozen=true")
            self.dino, self.dino_fusion = dino, TokenFusion(dino.channels[-1], 1, decoder_dim, dropout)

    def run(self, image: Tensor, layers: int = 1) -> Pass:
        """Encode, fuse and segment a normalised image (B, 3, H, W); for ``layers`` see `CLIPNet.encode`."""
        encoded = self.encode(image, layers)
        fused = [self.fusion([self.map_of(encoded, block) for block in self.fused_blocks])]
        if hasattr(self, "dino"):
            tokens = self.dino(image).features  # after the final norm, on a grid of its own
            fused.append(resize(self.dino_fusion(tokens), fused[0].shape[-2:]))
        return Pass(encoded, fused, [self.decoder(each) for each in fused])

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h, w)."""
        return self.run(image).segmentation

    def classify(self, image: Tensor) -> Tensor:
        """See `CLIPNet.leads`."""
        return self.leads(self.encode(image))
