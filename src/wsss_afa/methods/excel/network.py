"""ExCELNet: a frozen CLIP with calibrated attention; a fusion and a decoder of its tokens are trained.

Shapes beside the legend in `wsss_afa.types`: n = 1 + N tokens, the class token first; D width of a token, d
of CLIP's space; T texts, those of the C classes first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.plain_vit import project, run_block
from wsss_afa.models.backbones.timm_vit import TimmViT
from wsss_afa.models.token_decoder import TokenFusion, TransformerDecoder
from wsss_afa.ops.patch_text import normalize_tokens, patch_text_maps
from wsss_afa.types import Activation, AffinityTokens


class Calibrated(NamedTuple):
    """One pass of the frozen encoder."""

    layers: list[Tensor]
    """What the fusion sees of each block, (B, n, D)."""
    attention: Tensor
    """Of the last blocks, oldest first, (blocks, B, n, n)."""
    side: Tensor
    """End of the side path, (B, n, D), with the class token of the original path."""
    pull: Tensor
    """What a patch's guidance multiplies, (B, N, D): guided patches are side + E · pull."""
    grid: tuple[int, int]
    """(h, w)."""


class ExCELNet(nn.Module):
    """CLIP's image tower run with static visual calibration, `TokenFusion` and `TransformerDecoder`.

    In the last blocks a side path has, in the place of attention, the mean likeness of queries to queries,
    keys to keys and values to values, summed over heads, and no MLP.

    Args:
        backbone: CLIP's image tower with its projection.
        num_classes: C.
        texts: directions of length 1, (T, d), kept with the weights.
        calibrated: last blocks that have the side path.
        attended: last blocks whose attention is handed on: summed over heads in those with the side path,
            averaged in others, as in the released program.
        aliased: the fusion sees what the released program's does: of the last block before the side path the
            end of the side path, and of the blocks that have it, but the last, what the next one's attention
            has been added to already. Else it sees the output of each block.
        decoder_dim: width of fusion and decoder.
        decoder_depth: blocks of the decoder.
        decoder_heads: of each of its blocks.
        dropout: of the fusion.

    Raises:
        UserError: the backbone has no projection, or too few blocks.
    """

    texts: Tensor

    def __init__(
        self,
        backbone: TimmViT, num_classes: int, texts: Tensor, calibrated: int = 5, attended: int = 6,
        aliased: bool = True, decoder_dim: int = 256, decoder_depth: int = 3, decoder_heads: int = 8,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        depth = len(backbone.blocks)
        if not (0 < calibrated < depth and 0 < attended <= depth):
            given = f"method.calibrated={calibrated}, method.attended={attended}"
            raise UserError(f"{given}: need at least 1, and fewer than the backbone's {depth} blocks")
        self.backbone, self.num_classes = backbone, num_classes
        self.first, self.attended, self.aliased = depth - calibrated, attended, aliased
        self.register_buffer("texts", texts)
        self.fusion = TokenFusion(backbone.channels[-1], depth, decoder_dim, dropout)
        self.decoder = TransformerDecoder(decoder_dim, num_classes + 1, decoder_depth, decoder_heads)

    @torch.no_grad()
    def encode(self, image: Tensor, attended: int | None = None) -> Calibrated:
        """Run both paths; ``attended`` blocks from the end hand on their attention."""
        tokens, grid = self.backbone.embed(image)
        side, pull, layers, attention = tokens, tokens.new_zeros(()), [], []
        blocks: list[Any] = list(self.backbone.blocks)
        for index, block in enumerate(blocks):
            if index < min(self.first, len(blocks) - (attended or self.attended)):
                tokens, _, _ = run_block(block, tokens)
                layers.append(tokens)
                continue
            query, key, value = project(block, tokens)
            weights = _likeness(query, key)  # (B, heads, n, n)
            attention.append(weights.sum(1) if index >= self.first else weights.mean(1))
            if index == self.first:
                side = tokens
            tokens = tokens + _project_heads(block, weights @ value)
            if index >= self.first:
                side = side + _project_heads(block, _self_likeness(query, key, value) @ value)
                pull = pull + _weigh_heads(block, value[:, :, 1:])
                if self.aliased and index > self.first:
                    layers[-1] = tokens
            tokens = tokens + block.mlp(block.norm2(tokens))
            layers.append(tokens)
        side = torch.cat([tokens[:, :1], side[:, 1:]], dim=1)
        if self.aliased:
            layers[self.first - 1] = side
        maps = torch.stack(attention[-(attended or self.attended) :])
        return Calibrated(layers, maps, side, self.backbone.num_heads * pull, grid)

    def fuse(self, encoded: Calibrated) -> Tensor:
        """The fused map (B, decoder_dim, h, w) of a pass."""
        maps = [_on_grid(layer[:, 1:].mT, encoded.grid) for layer in encoded.layers]
        fused: Tensor = self.fusion(maps)
        return fused

    def features(self, encoded: Calibrated, guidance: Tensor | None = None) -> Tensor:
        """Features (B, n, d) in CLIP's space of the side path, `normalize_tokens` applied.

        With guidance E (B, N, N), rows of sum 1, patches are those of the program's second pass of the
        encoder, in which E is added to the calibrated attention of every head.
        """
        side = encoded.side
        if guidance is not None:
            side = torch.cat([side[:, :1], side[:, 1:] + guidance @ encoded.pull.to(guidance)], dim=1)
        return normalize_tokens(self.backbone.head(self.backbone.norm(side)))

    @torch.no_grad()
    def class_maps(self, encoded: Calibrated, guidance: Tensor | None = None) -> Tensor:
        """Class maps (B, C, h, w) in [0, 1] of a pass, in float32."""
        with torch.autocast(encoded.side.device.type, enabled=False):
            features = self.features(encoded, guidance).float()
            return _on_grid(patch_text_maps(features, self.texts, self.num_classes), encoded.grid)

    def segment(self, image: Tensor) -> Tensor:
        """Segmentation logits (B, K, h, w)."""
        logits: Tensor = self.decoder(self.fuse(self.encode(image)))
        return logits

    @torch.no_grad()
    def class_logits(self, encoded: Calibrated) -> Tensor:
        """Likeness (B, C) of the whole image to the text of each class: CLIP's own, which nothing trains."""
        token = self.backbone.head(self.backbone.norm(encoded.side[:, 0]))
        return F.normalize(token, dim=-1) @ self.texts[: self.num_classes].T

    def classify(self, image: Tensor) -> Tensor:
        """`class_logits` of an image (B, 3, H, W)."""
        return self.class_logits(self.encode(image))

    @torch.no_grad()
    def activate(self, image: Tensor) -> Activation:
        """Static class maps (B, C, h, w)."""
        encoded = self.encode(image)
        return Activation(self.class_maps(encoded), AffinityTokens([], [], encoded.grid))


def _on_grid(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rows (B, D, N) of tokens as maps (B, D, h, w)."""
    return rows.reshape(*rows.shape[:2], *grid)


def _likeness(one: Tensor, other: Tensor) -> Tensor:
    """Scaled, soft-maxed products (B, heads, n, n) of tokens of heads (B, heads, n, d)."""
    likeness: Tensor = (one @ other.mT * one.shape[-1] ** -0.5).softmax(-1)
    return likeness


def _self_likeness(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The calibrated attention, the same for every head: (B, 1, n, n)."""
    alike = [_likeness(each, each).sum(1, keepdim=True) for each in (query, key, value)]
    return torch.stack(alike).sum(0) / 3


def _project_heads(block: Any, heads: Tensor) -> Tensor:
    """Output (B, n, D) of a block's attention of what its heads (B, heads, n, d) attended to."""
    attended: Tensor = block.attn.proj(heads.transpose(1, 2).flatten(2))
    return attended


def _weigh_heads(block: Any, heads: Tensor) -> Tensor:
    """The same without the bias."""
    weighed: Tensor = F.linear(heads.transpose(1, 2).flatten(2), block.attn.proj.weight)
    return weighed
