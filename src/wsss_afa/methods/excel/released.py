"""Checkpoints of the ExCEL authors' program: weights alone, CLIP's among them, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

from collections.abc import Mapping

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
)


def rename_excel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give released weights, each with or without a leading `module.`, the names of our ExCELNet.

    The text tower, which is frozen, too, is left out, and so is a second copy of a block's attention.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    kept = {
        apply_rules(_NAMES, key): value
        for key, value in bare.items()
        if not key.startswith("encoder.visual.attn.")
        and (key.startswith("encoder.visual.") or not key.startswith("encoder."))
    }
    return {key: _shaped(key, value) for key, value in kept.items() if not key.startswith("par.")}


def _shaped(key: str, value: Tensor) -> Tensor:
    """Leading axes as timm has them, and the projection as a linear layer."""
    if key == "backbone.head.weight":
        return value.T.contiguous() if value.ndim == 2 else value
    return (
        value.reshape(1, -1, value.shape[-1])
        if key in ("backbone.cls_token", "backbone.pos_embed")
        else value
    )
