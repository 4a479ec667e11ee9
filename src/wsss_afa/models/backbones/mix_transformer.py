"""Mix Transformer (MiT), the encoder of SegFormer (arXiv 2105.15203), as AFA (arXiv 2203.02664) uses it.

Four stages of overlapping patch embedding and Transformer blocks. AFA sets the last stage's stride to 1, so
that stages 3 and 4 share the token grid at 1/16, and learns affinity from the attention of the last blocks.
The encoder hands out those blocks' queries and keys; no N × N map is ever stored.

Shapes beside the legend in `wsss_afa.types`: n, s tokens and grid (height, width) of the stage at hand,
n' tokens after its spatial reduction, c its channels, d = c / heads. Images and maps are kept in memory as
tokens lie, channels last, so that passing between both forms moves no data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.patches import lengthen
from wsss_afa.models.weights import fit_mit, read_weights, weights_sha256
from wsss_afa.types import MEAN, STD, BackboneOutput

__all__ = ["VARIANTS", "MixTransformer", "attention_logits", "mix_transformer"]


def to_tokens(image: Tensor) -> Tensor:
    """(B, c, *s) → (B, n, c): a view where the map lies channels last."""
    return image.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, n, c) → (B, c, *s): a view, channels last in memory."""
    return tokens.view(tokens.shape[0], *size, -1).permute(0, 3, 1, 2)  # fit for convolutions for B = 1, too


def attention_logits(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """Per-head attention (B, M, N, N) before scaling and softmax, q kᵀ, of the oldest block's heads first.

    Queries and keys are of several blocks, oldest first, (B, heads, N, head_dim) each.
    """
    return torch.cat([query @ key.transpose(-2, -1) for query, key in zip(queries, keys, strict=True)], dim=1)


class PatchEmbed(nn.Module):
    """Overlapping patches: a convolution, padded by half its kernel, and a LayerNorm (eps 1e-5)."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, in_channels, height, width) → tokens (B, n, c) and their grid s."""
        patches = self.proj(image)
        return self.norm(to_tokens(patches)), (patches.shape[2], patches.shape[3])


class Attention(nn.Module):
    """Multi-head attention; every key and value stands for a square of sr_ratio × sr_ratio tokens."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Attended tokens (B, n, c), and the queries (B, heads, n, d) and keys (B, heads, n', d) used."""
        reduced = tokens
        if self.sr_ratio > 1:
            reduced = self.norm(to_tokens(self.sr(to_map(tokens, size))))  # (B, n', c)
        query = self.q(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, n, d)
        key, value = self.kv(reduced).unflatten(2, (2, self.num_heads, -1)).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value)  # scale d^-0.5
        return self.proj(attended.transpose(1, 2).flatten(2)), query, key


class MixFFN(nn.Module):
    """Linear, 3×3 depth-wise convolution (the only sense of position there is), GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, n, c) → (B, n, c)."""
        mixed = self.dwconv(to_map(self.fc1(tokens), size))
        out: Tensor = self.fc2(F.gelu(to_tokens(mixed)))
        return out


class Block(nn.Module):
    """x + DropPath(Attention(LN x)), then x + DropPath(FFN(LN x)); LayerNorm eps 1e-6."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, sr_ratio)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFFN(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, c) → (B, n, c), with the attention's queries and keys."""
        attended, query, key = self.attn(self.norm1(tokens), size)
        tokens = tokens + self.drop_path(attended)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens), size))
        return tokens, query, key


class Stage(nn.Module):
    """Patch embedding, blocks, LayerNorm (eps 1e-6); the last blocks hand out their queries and keys."""

    def __init__(
        self,
        patch_embed: PatchEmbed,
        blocks: Sequence[Block],
        num_affinity_blocks: int,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(patch_embed.proj.out_channels, eps=1e-6)
        self.first_affinity_block = len(blocks) - num_affinity_blocks
        self.activation_checkpointing = activation_checkpointing

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Map → map (B, c, *s), channels last in memory, and the last blocks' queries and keys."""
        queries, keys = [], []
        tokens, size = self.patch_embed(image)
        again = self.activation_checkpointing and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            tokens, query, key = run(tokens, size)
            if index >= self.first_affinity_block:
                queries.append(query)
                keys.append(key)
        return to_map(self.norm(tokens), size), queries, keys


class MixTransformer(nn.Module):
    """The encoder: features of four stages, and what the last blocks of stage 4 attend with.

    Args:
        embed_dims: channels of the four stages, each a multiple of its heads.
        depths: blocks of the four stages.
        num_heads: attention heads of the four stages.
        sr_ratios: spatial reduction of keys and values; 1 in the last stage makes its attention square.
        mlp_ratio: hidden channels of the FFN per channel.
        strides: of the patch embeddings. AFA keeps 1/16 in the last stage; SegFormer has (4, 2, 2, 2).
        drop_path_rate: of the last block, in [0, 1); rises linearly from 0 in the first.
        num_affinity_blocks: blocks of stage 4, counted from its end, that hand out queries and keys.
        activation_checkpointing: the backward pass runs blocks again: less memory, one more forward of time.

    It has the attributes of a `FeatureBackbone`, ``affinity_head_dim``, channels of a query or key, and
    ``source`` and ``sha256`` of the file of its first weights, None for random ones.
    """

    source: str | None = None
    sha256: str | None = None

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: int = 4,
        strides: Sequence[int] = (4, 2, 2, 1),
        drop_path_rate: float = 0.1,
        num_affinity_blocks: int = 2,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        assert len(embed_dims) == len(depths) == len(num_heads) == len(sr_ratios) == len(strides) == 4
        assert sr_ratios[-1] == 1, "the last stage's attention must be square"
        assert 0 < num_affinity_blocks <= depths[-1]
        self.channels = tuple(embed_dims)
        self.mean, self.std = MEAN, STD
        self.any_size = True
        self.reductions = tuple(math.prod(strides[: i + 1]) for i in range(4))
        self.num_affinity_maps = num_affinity_blocks * num_heads[-1]
        self.affinity_head_dim = embed_dims[-1] // num_heads[-1]
        self.min_side = max((sr - 1) * step + 1 for sr, step in zip(sr_ratios, self.reductions, strict=True))
        rates = (drop_path_rate * index / (sum(depths) - 1) for index in range(sum(depths)))
        self.stages = nn.ModuleList()
        for i, (in_channels, dim) in enumerate(pairwise((3, *embed_dims))):
            embed = PatchEmbed(in_channels, dim, 7 if i == 0 else 3, strides[i])
            args = (dim, num_heads[i], sr_ratios[i], mlp_ratio)
            blocks = [Block(*args, next(rates)) for _ in range(depths[i])]
            affinity_blocks = num_affinity_blocks if i == 3 else 0
            self.stages.append(Stage(embed, blocks, affinity_blocks, activation_checkpointing))
        self.apply(_init_weights)

    def forward(self, image: Tensor) -> BackboneOutput:
        """Encode normalised images (B, 3, H, W) of any size.

        There are four features (B, channels[i], ⌈H / reductions[i]⌉, ⌈W / reductions[i]⌉), and of each of the
        last blocks the queries and keys (B, heads, N, head_dim), not scaled. Sides shorter than `min_side`
        are lengthened by repeating the border, and what lies beyond the image is cut off again.
        """
        if min(image.shape[2:]) < self.min_side:
            return self._cut(self(lengthen(image, self.min_side)), image.shape[2:])
        features: list[Tensor] = []
        for stage in self.stages:
            image, queries, keys = stage(image)
            features.append(image)
        return BackboneOutput(features, queries, keys)

    def _cut(self, encoded: BackboneOutput, size: Sequence[int]) -> BackboneOutput:
        """What an encoding says of the first (H, W) pixels."""
        grids = [[-(-side // step) for side in size] for step in self.reductions]
        full, (h, w) = encoded.features[-1].shape[2:], grids[-1]
        features = [
            map_[..., : grid[0], : grid[1]] for map_, grid in zip(encoded.features, grids, strict=True)
        ]

        def cut(tokens: Tensor) -> Tensor:  # (B, heads, n, d) → (B, heads, N, d)
            return tokens.view(*tokens.shape[:2], *full, -1)[:, :, :h, :w].flatten(2, 3)

        return BackboneOutput(features, list(map(cut, encoded.queries)), list(map(cut, encoded.keys)))


def _init_weights(module: nn.Module) -> None:
    """SegFormer's: linear truncated normal, σ 0.02; convolution normal, σ² = 2 / fan-out; biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


VARIANTS: Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]] = {
    # channels, depths, heads
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8)),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), (1, 2, 5, 8)),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8)),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8)),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8)),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), (1, 2, 5, 8)),
    "tiny": ((24, 48, 96, 160), (1, 1, 2, 2), (1, 2, 4, 8)),
}
"""b0 … b5 as published with SegFormer; `tiny`, ours, trains on a CPU and has no published weights."""


def mix_transformer(
    variant: str, pretrained: str | None = None, strides: Sequence[int] = (4, 2, 2, 1),
    drop_path_rate: float = 0.1, activation_checkpointing: bool = False,
) -> MixTransformer:  # fmt: skip
    """Build an encoder, on the CPU and in training mode, with published weights if wanted.

    The other settings are those of `MixTransformer`.

    Args:
        variant: a key of `VARIANTS`.
        pretrained: None for random weights; else a file, a URL or a hub id, see `weights.read_weights`.

    Raises:
        UserError: unknown variant, not four strides, or weights that cannot be had or do not fit.

    Examples:
        >>> encoded = mix_transformer("tiny")(torch.zeros(1, 3, 64, 96))
        >>> [tuple(feature.shape[1:]) for feature in encoded.features]
        [(24, 16, 24), (48, 8, 12), (96, 4, 6), (160, 4, 6)]
    """
    if variant not in VARIANTS:
        raise UserError(f"variant={variant} is not known; need one of {', '.join(VARIANTS)}: set variant=b1")
    if len(strides) != 4:
        raise UserError(f"strides={list(strides)}: got {len(strides)}, need one per stage: set [4, 2, 2, 1]")
    model = MixTransformer(
        *VARIANTS[variant],
        strides=strides,
        drop_path_rate=drop_path_rate,
        activation_checkpointing=activation_checkpointing,
    )
    if pretrained is not None:
        state = read_weights(pretrained)
        model.source, model.sha256 = pretrained, weights_sha256(pretrained)
        try:
            model.load_state_dict(fit_mit(state, model))
        except UserError as error:
            raise UserError(f"pretrained={pretrained} for variant={variant}: {error}") from None
    return model


def _register(variant: str) -> None:
    """Make the variant known to `timm.create_model`."""

    def create(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
        build = partial(MixTransformer, *VARIANTS[variant])
        kwargs["pretrained_filter_fn"] = fit_mit
        model: MixTransformer = build_model_with_cfg(build, create.__name__, pretrained, **kwargs)
        return model

    create.__name__ = f"mit_{variant}"
    globals()[create.__name__] = register_model(create)


# No default sizes: timm would hand them on as constructor arguments.
_OPEN: dict[str, Any] = {"input_size": None, "num_classes": None, "license": "other"}
default_cfgs = generate_default_cfgs(
    {f"mit_b{i}": {"hf_hub_id": f"nvidia/mit-b{i}", **_OPEN} for i in range(6)} | {"mit_tiny": _OPEN}
)
for _variant in VARIANTS:
    _register(_variant)
