"""One door to the plain Vision Transformers of timm: ViT, DeiT, DINO, DINOv2 and the image towers of CLIP.

A plain ViT keeps one token grid from its first block to its last, so every map has the stride of the patches.
timm builds the parts and knows the published weights. `TimmViT` owns these parts, under timm's parameter
names, and runs them itself: timm's forward pass resizes position embeddings in one way only, hands out
neither queries nor keys, and whether it fuses attention depends on a switch of the process.

Shapes beside the legend in `wsss_afa.types`: D channels, P leading tokens (class tokens, then registers),
n = P + N, d = D / heads. Sequences (B, n, D) hold the leading tokens first, then the patches row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss_afa.errors import UserError
from wsss_afa.models.backbones.patches import FITS, POSITIONS, fit_to_patches, resize_positions
from wsss_afa.models.backbones.plain_vit import fill, plain_vit, run_block
from wsss_afa.types import BackboneOutput


class Encoded(NamedTuple):
    """What an encoder was asked for; a list is empty where it was asked for nothing."""

    maps: list[Tensor]
    """Patch tokens of the chosen blocks (B, D, h, w), in the order of asking."""
    leading: list[Tensor]
    """Leading tokens (B, P, D) of the same blocks, normed as their maps are."""
    queries: list[Tensor]
    """(B, heads, N, d), not scaled, without leading tokens, oldest block first."""
    keys: list[Tensor]
    """Like the queries."""
    attention: list[Tensor]
    """Soft-maxed, with leading tokens, oldest block first: (B, heads, n, n), or (B, n, n) as a mean."""


class TimmViT(nn.Module):
    """A plain ViT that hands on maps, leading tokens, queries, keys and attention, each only when asked.

    Args:
        name: timm's, with the tag of its weights, such as ``vit_base_patch16_224.orig_in21k_ft_in1k``.
        pretrained: True for the weights that timm names; for others a file (.safetensors, .pth), a URL or a
            hub id, see `weights.fit_vit`; None or False for random ones.
        blocks: whose maps `forward` hands on, from 0, or from the end where negative. The last one named is
            the classifier's input.
        final_norm: which of these maps pass through the final norm: the ``last`` named, ``all`` or ``none``.
        num_affinity_blocks: blocks, counted from the end, whose queries and keys `forward` hands on.
        depth: the network ends after this many blocks; None keeps all.
        trainable_from: embeddings and the blocks before this one are frozen: no gradient, no graph, always in
            evaluation mode. 0 freezes the embeddings alone, as many as there are blocks all and the final
            norm, None nothing.
        trainable_positions: False freezes the position embedding, whatever else is trained.
        positions: how position embeddings are resized to another grid, a key of `patches.POSITIONS`.
        fit: how images get whole patches, one of `patches.FITS`. ``pad`` keeps every pixel. ToCo, MoRe and
            WeCLIP have ``crop``, WeCLIP+ has ``resize`` for DINOv2.
        drop_path_rate: of the last block, in [0, 1); rises linearly from 0 in the first.
        activation_checkpointing: the backward pass runs blocks again: less memory, one more forward of time.
        projection: keep CLIP's projection of normed tokens into the space of texts, frozen, as ``head``.
        mean: of RGB, 0…255, that images are normalised with; None for what the weights were made with.
        std: standard deviation, likewise.
        model_args: further arguments of timm's constructor, such as ``{img_size: 224}`` where the weights'
            position embedding has another grid than the name says.
        frozen: nothing at all is trained, and all parts stay in evaluation mode. Weights of a file then stay
            out of checkpoints, see `methods.towers`.
        sha256: what the file of weights must have, in hexadecimal; None takes any file.

    Beside the attributes of every `FeatureBackbone` it has ``stride``, image pixels per cell along a side,
    ``num_heads`` of a block, ``affinity_head_dim``, d, ``grid``, rows and columns of the position embedding,
    and ``source`` and ``sha256`` of the file of weights, None for random ones.

    Raises:
        UserError: timm has no such model or it is no plain ViT, there is no such block or rule, or the
            weights cannot be had or do not fill the model exactly.

    Examples:
        >>> vit = TimmViT("vit_tiny_patch16_224", pretrained=None, blocks=[5, 11])
        >>> [tuple(feature.shape) for feature in vit(torch.zeros(1, 3, 32, 56)).features]
        [(1, 192, 2, 4), (1, 192, 2, 4)]
    """

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None

    def __init__(
        self,
        name: str, pretrained: bool | str | None = True, blocks: Sequence[int] = (-1,),
        final_norm: str = "last", num_affinity_blocks: int = 2, depth: int | None = None,
        trainable_from: int | None = None, trainable_positions: bool = True, positions: str = "timm",
        fit: str = "pad", drop_path_rate: float = 0.0, activation_checkpointing: bool = False,
        projection: bool = False, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        model_args: Mapping[str, Any] | None = None, frozen: bool = False, sha256: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.final_norm = _one_of("final_norm", final_norm, ("last", "all", "none"))
        self.positions = _one_of("positions", positions, POSITIONS)
        self.fit = _one_of("fit", fit, FITS)
        model = plain_vit(name, projection, model_args or {})
        self.source, self.sha256 = fill(model, name, pretrained, sha256)
        depth = len(model.blocks) if depth is None else _within("depth", depth, 1, len(model.blocks))
        self._own(model, depth, projection)
        for block, rate in zip(self.blocks, calculate_drop_path_rates(drop_path_rate, depth), strict=True):
            block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        self.frozen = frozen
        self._freeze(depth if frozen else trainable_from, trainable_positions)
        self.activation_checkpointing = activation_checkpointing
        _within("num_affinity_blocks", num_affinity_blocks, 0, depth)
        self.affinity_blocks = list(range(depth - num_affinity_blocks, depth))
        self.num_heads: int = model.blocks[0].attn.num_heads
        self.num_affinity_maps = num_affinity_blocks * self.num_heads
        self.affinity_head_dim: int = model.embed_dim // self.num_heads
        self.feature_blocks = self._indices(blocks)
        self.channels: tuple[int, ...] = (model.embed_dim,) * len(self.feature_blocks)
        self.stride: int = model.patch_embed.patch_size[0]
        self.reductions = (self.stride,) * len(self.feature_blocks)
        self.min_side = 1 if fit == "pad" else self.stride
        self.any_size = True
        self.mean = tuple(mean or (255 * value for value in model.pretrained_cfg["mean"]))
        self.std = tuple(std or (255 * value for value in model.pretrained_cfg["std"]))

    def _own(self, model: Any, depth: int, projection: bool) -> None:
        self.patch_embed, self.pos_embed = model.patch_embed, model.pos_embed
        self.cls_token, self.reg_token = model.cls_token, model.reg_token
        self.norm_pre, self.norm = model.norm_pre, model.norm
        self.blocks = nn.ModuleList(model.blocks[:depth])
        if projection:
            self.head = model.head.requires_grad_(False)
        self.grid: tuple[int, int] = model.patch_embed.grid_size

    def _freeze(self, trainable_from: int | None, trainable_positions: bool) -> None:
        self.trainable_from = trainable_from
        self.pos_embed.requires_grad_(trainable_positions)
        if trainable_from is not None:
            _within("trainable_from", trainable_from, 0, len(self.blocks))
            for part in (self.pos_embed, *self._leading(), *self._frozen()):
                part.requires_grad_(False)

    @property
    def num_leading_tokens(self) -> int:
        """Class tokens and registers, P."""
        return sum(token.shape[1] for token in self._leading())

    def set_leading_tokens(self, class_tokens: int, registers: int = 0, position_std: float = 1.0) -> None:
        """Repeat the class token: one for each class, then registers, as MoRe (arXiv 2412.11076) does.

        All start with the numbers and the position of the class token, but for the registers' positions,
        which are drawn from a normal of standard deviation ``position_std``, cut at ±2. A UserError
        says that the model has no class token or has registers, or that its embeddings are frozen.
        """
        if self.cls_token is None or self.reg_token is not None or self.trainable_from is not None:
            raise UserError(
                "leading tokens cannot be repeated here; need a model with a class token, without registers, "
                "whose embeddings are trained: choose backbone=vit_base with backbone.trainable_from=null"
            )
        first = self.cls_token.detach()[:, :1]
        self.cls_token = nn.Parameter(first.repeat(1, class_tokens, 1))
        if registers:
            self.reg_token = nn.Parameter(first.repeat(1, registers, 1))
        if old := self._num_leading_positions():
            positions = self.pos_embed.detach()
            start = positions[:, :1].repeat(1, class_tokens + registers, 1)
            nn.init.trunc_normal_(start[:, class_tokens:], std=position_std)
            positions = torch.cat([start, positions[:, old:]], dim=1)
            self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)

    def train(self, mode: bool = True) -> TimmViT:
        """Set the mode of all parts but the frozen ones, which stay in evaluation mode."""
        super().train(mode and not self.frozen)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, image: Tensor) -> BackboneOutput:
        """Encode normalised images (B, 3, H, W) of any size.

        Return the maps (B, D, h, w) of ``blocks``, and of each of the last blocks the queries and keys
        (B, heads, N, d), not scaled. h and w are H and W over the stride, rounded up where ``fit`` is ``pad``
        and down otherwise, to 1 at least.
        """
        encoded = self.encode(image, self.feature_blocks, self.final_norm, self.affinity_blocks)
        return BackboneOutput(encoded.maps, encoded.queries, encoded.keys)

    def encode(
        self,
        image: Tensor, blocks: Sequence[int] = (), final_norm: str = "last",
        queries_and_keys: Sequence[int] = (), attention: Sequence[int] = (), average_heads: bool = False,
    ) -> Encoded:  # fmt: skip
        """Run as many blocks as are asked for, and hand on what is asked for; blocks count from either end.

        Args:
            image: (B, 3, H, W), normalised.
            blocks: whose maps and leading tokens are wanted.
            final_norm: as in the constructor, for these maps and tokens.
            queries_and_keys: blocks whose queries and keys are wanted.
            attention: blocks whose matrices of attention are wanted. No others are ever built.
            average_heads: hand on the mean of a block's matrices.
        """
        mapped, paired, attended = map(self._indices, (blocks, queries_and_keys, attention))
        again = self.activation_checkpointing and torch.is_grad_enabled()
        run = partial(checkpoint, run_block, use_reentrant=False) if again else run_block
        tokens, grid = self.embed(image)
        found, outputs, leading = Encoded([], [], [], [], []), {}, self.num_leading_tokens
        for index in range(max([*mapped, *paired, *attended], default=-1) + 1):
            tokens, query, key = run(self.blocks[index], tokens)
            if index in mapped:
                outputs[index] = tokens
            if index in paired:
                found.queries.append(query[:, :, leading:])
                found.keys.append(key[:, :, leading:])
            if index in attended:
                weights = (query @ key.mT * self.affinity_head_dim**-0.5).softmax(-1)
                found.attention.append(weights.mean(1) if average_heads else weights)
        for index in mapped:
            normed = final_norm == "all" or (final_norm == "last" and index == mapped[-1])
            tokens = self.norm(outputs[index]) if normed else outputs[index]
            found.leading.append(tokens[:, :leading])
            found.maps.append(tokens[:, leading:].unflatten(1, grid).permute(0, 3, 1, 2))  # (B, D, h, w)
        return found

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image (B, 3, H, W) → the first block's input (B, n, D), and the token grid (h, w)."""
        frozen = self.trainable_from is not None
        patches = self.patch_embed(fit_to_patches(image.detach() if frozen else image, self.stride, self.fit))
        grid = (patches.shape[1], patches.shape[2])  # of (B, h, w, D)
        places = self.pos_embed[:, self._num_leading_positions() :]
        patches = patches.flatten(1, 2) + resize_positions(places, self.grid, grid, self.positions)
        leading = [token.expand(image.shape[0], -1, -1) for token in self._leading()]
        if self._num_leading_positions():
            leading = [torch.cat(leading, dim=1) + self.pos_embed[:, : self._num_leading_positions()]]
        tokens: Tensor = self.norm_pre(torch.cat([*leading, patches], dim=1))
        return tokens, grid

    def _indices(self, blocks: Sequence[int]) -> list[int]:
        depth = len(self.blocks)
        return [_within("blocks", block, -depth, depth - 1) % depth for block in blocks]

    def _leading(self) -> list[nn.Parameter]:
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def _num_leading_positions(self) -> int:
        """P where leading tokens have positions; 0 where they have none, as in DINOv2 with registers."""
        return int(self.pos_embed.shape[1]) - self.grid[0] * self.grid[1]

    def _frozen(self) -> list[nn.Module]:
        if self.trainable_from is None:
            return []
        blocks = list(self.blocks)[: self.trainable_from]
        return [self.patch_embed, self.norm_pre, *blocks] + [self.norm] * (len(blocks) == len(self.blocks))


def _one_of(key: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise UserError(f"backbone.{key}={value} is not known; need one of {', '.join(known)}")
    return value


def _within(key: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise UserError(f"backbone.{key}={value}: need {low} to {high} in this network; choose one of these")
    return value
