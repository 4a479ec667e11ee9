"""What WeCLIP, WeCLIP+ (CVPR 2024, TPAMI 2025) and ExCEL (CVPR 2025) train on tokens of a frozen encoder.

`TokenFusion` brings the tokens of several blocks to one map, `TransformerDecoder` segments it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from wsss_afa.models.backbones.plain_vit import run_block
from wsss_afa.models.weights import Rules

RELEASED_NAMES: Rules = (
    (r"decoder_fts_fuse\.linears_modulelist\.(\d+)\.proj\.", r"fusion.mlps.\1.0."),
    (r"decoder_fts_fuse\.linears_modulelist\.(\d+)\.proj_2\.", r"fusion.mlps.\1.2."),
    (r"decoder_fts_fuse\.linear_fuse\.", "fusion.fuse."),
    (r"^decoder\.transformer\.resblocks\.", "decoder.blocks."),
    (r"^decoder\.linear_pred\.", "decoder.predict."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""The authors' names → ours, of a ``fusion`` and a ``decoder``, and of blocks of CLIP anywhere."""


class TokenFusion(nn.Module):
    """An MLP for the tokens of each block, and a 1×1 convolution of all of them.

    Args:
        channels: D, of a token.
        num_maps: blocks whose tokens are fused.
        dim: of the MLPs and of what comes out.
        dropout: share of channels dropped of what comes out, in training.

    Examples:
        >>> TokenFusion(channels=8, num_maps=2, dim=4)([torch.zeros(1, 8, 2, 3)] * 2).shape
        torch.Size([1, 4, 2, 3])
    """

    def __init__(self, channels: int, num_maps: int, dim: int = 256, dropout: float = 0.1):
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, dim), nn.ReLU(), nn.Linear(dim, dim)) for _ in range(num_maps)
        )
        self.fuse = nn.Conv2d(num_maps * dim, dim, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse maps (B, D, h, w) of the blocks, oldest first, to (B, dim, h, w)."""
        projected = [mlp(each.movedim(1, -1)) for mlp, each in zip(self.mlps, maps, strict=True)]
        fused: Tensor = self.dropout(self.fuse(torch.cat(projected, dim=-1).movedim(-1, 1)))
        return fused


class TransformerDecoder(nn.Module):
    """Pre-norm Transformer blocks as CLIP has them, without position embedding, and a 1×1 convolution.

    Args:
        dim: width of the map given and of the blocks.
        num_outputs: K, background included.
        depth: number of blocks.
        num_heads: of each.

    Examples:
        >>> TransformerDecoder(dim=8, num_outputs=21, num_heads=2)(torch.zeros(1, 8, 2, 3)).shape
        torch.Size([1, 21, 2, 3])
    """

    def __init__(self, dim: int, num_outputs: int, depth: int = 3, num_heads: int = 8):
        super().__init__()
        self.blocks = nn.ModuleList(_clip_block(dim, num_heads) for _ in range(depth))
        self.predict = nn.Conv2d(dim, num_outputs, 1)

    def forward(self, fused: Tensor) -> Tensor:
        """Return logits (B, num_outputs, h, w) of a fused map (B, dim, h, w)."""
        tokens = fused.flatten(2).mT  # (B, N, dim)
        for block in self.blocks:
            tokens, _, _ = run_block(block, tokens)
        logits: Tensor = self.predict(tokens.mT.reshape(fused.shape))
        return logits


def _clip_block(dim: int, num_heads: int) -> Any:
    """A block with QuickGELU, whose attention begins as PyTorch's own does."""
    gelu = get_act_layer("quick_gelu")  # x · sigmoid(1.702 x)
    block = Block(dim, num_heads, qkv_bias=True, act_layer=gelu, norm_layer=nn.LayerNorm)
    nn.init.xavier_uniform_(block.attn.qkv.weight)
    nn.init.zeros_(block.attn.qkv.bias)
    nn.init.zeros_(block.attn.proj.bias)
    return block
