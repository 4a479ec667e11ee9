"""Files of programs that keep OpenAI's CLIP in their network: its names → ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsss_afa.models.token_decoder import RELEASED_NAMES
from wsss_afa.models.weights import Rules, apply_rules

_NAMES: Rules = (
    *RELEASED_NAMES,
    (r"^encoder\.visual\.conv1\.", "backbone.patch_embed.proj."),
    (r"^encoder\.visual\.class_embedding$", "backbone.cls_token"),
    (r"^encoder\.visual\.positional_embedding$", "backbone.pos_embed"),
    (r"^encoder\.visual\.ln_pre\.", "backbone.norm_pre."),
    (r"^encoder\.visual\.ln_post\.", "backbone.norm."),
    (r"^encoder\.visual\.proj$", "backbone.head.weight"),
    (r"^encoder\.visual\.transformer\.resblocks\.", "backbone.blocks."),
    (r"^dino_encoder\.", "dino."),
)
_FROZEN: dict[str, Any] = {
    "_target_": "wsss_afa.models.backbones.timm_vit.TimmViT",
    "pretrained": None,
    "num_affinity_blocks": 0,
    "frozen": True,
}
"""What the configurations of all towers share."""
_UNUSED = (
    "encoder.visual.positional_embedding_new", "encoder.visual.attn.", "par.", "dino_encoder.mask_token",
)  # fmt: skip


def rename_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give released weights, each with or without a leading `module.`, our names.

    The text tower is left out, see `text_weights`, and so are copies that the program has of other weights.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    seen = [key for key in bare if key.startswith("encoder.visual.") or not key.startswith("encoder.")]
    kept = {apply_rules(_NAMES, key): bare[key] for key in seen if not key.startswith(_UNUSED)}
    for key in ("backbone.cls_token", "backbone.pos_embed"):
        kept[key] = kept[key].reshape(1, -1, kept[key].shape[-1])
    head = kept["backbone.head.weight"].T.contiguous()  # a matrix without bias → a linear layer
    return kept | {"backbone.head.weight": head, "backbone.head.bias": torch.zeros(len(head))}


def text_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's text tower among released weights, under OpenAI's names."""
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    own = {key.removeprefix("encoder."): value for key, value in bare.items() if key.startswith("encoder.")}
    return {key: value for key, value in own.items() if not key.startswith("visual.")}


def clip_backbone(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """Configuration of the frozen image tower of renamed weights."""
    shape = _shape(state, "backbone", heads) | {"num_classes": len(state["backbone.head.weight"])}
    return _FROZEN | {
        "name": "vit_base_patch16_clip_quickgelu_224.openai",
        "projection": True,
        "positions": "bilinear",
        "fit": "crop",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "model_args": shape,
    }


def dino_backbone(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration of the frozen DINOv2, without registers, of renamed weights."""
    return _FROZEN | {
        "name": "vit_small_patch14_dinov2.lvd142m",
        "positions": "bicubic_scale",
        "fit": "resize",
        "model_args": _shape(state, "dino"),
    }


def _shape(state: Mapping[str, Tensor], tower: str, heads: int | None = None) -> dict[str, int]:
    """Arguments of timm's constructor that the weights of a tower show."""
    patches, positions = state[f"{tower}.patch_embed.proj.weight"], state[f"{tower}.pos_embed"]
    width, patch = len(patches), patches.shape[-1]
    blocks = (key for key in state if key.startswith(f"{tower}.blocks.") and key.endswith(".norm1.weight"))
    side = round((positions.shape[1] - 1) ** 0.5) * patch
    return {
        "embed_dim": width, "depth": len([*blocks]), "num_heads": heads or max(1, width // 64),
        "patch_size": patch, "img_size": side,
    }  # fmt: skip
