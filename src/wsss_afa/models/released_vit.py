"""Files of programs whose network is an `AuxiliaryCAMNet`: their names → ours, and what their shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.models.weights import Rules, apply_rules

_NAMES: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.conv6\.", "decoder.near."),
    (r"^decoder\.conv7\.", "decoder.far."),
    (r"^decoder\.conv8\.", "decoder.predict."),
)
_HEADS = {768: 12, 384: 6, 192: 3, 1024: 16}
"""Heads of a block by the width of tokens, in the published sizes of ViT."""


def rename_vit(state: Mapping[str, Tensor], rules: Rules = ()) -> dict[str, Tensor]:
    """Give released weights, each with or without a leading `module.`, our names.

    ``rules`` are those of the method's own parts. The encoder's own head, which nothing uses, is dropped.
    """
    bare = {key.removeprefix("module."): value for key, value in state.items()}
    return {
        apply_rules((*_NAMES, *rules), key): value
        for key, value in bare.items()
        if not key.startswith("encoder.head.")
    }


def released_settings(state: Mapping[str, Tensor], coco: bool) -> dict[str, Any]:
    """Settings that the programs share, of weights under our names; ``coco`` says whose they are."""
    return {
        "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement"},
        "classification": {"_target_": "wsss_afa.losses.classification.ClassificationLoss"},
        "dense_energy": {"_target_": "wsss_afa.losses.dense_energy.DenseEnergyLoss"},
        "weights": {},
        "augmentation": {},
        "decoder_dim": len(state["decoder.near.weight"]),
        "high": 0.65 if coco else 0.7,
        "eval_threshold": 0.45 if coco else 0.5,
    }


def released_backbone(state: Mapping[str, Tensor], leading: int) -> dict[str, Any]:
    """Configuration of the ViT of released weights under our names, with so many leading tokens.

    Raises:
        UserError: its tokens have the width of no published ViT.
    """
    patches, positions = state["backbone.patch_embed.proj.weight"], state["backbone.pos_embed"]
    width, depth = len(patches), sum(bool(re.search(r"\.norm1\.weight$", key)) for key in state)
    if width not in _HEADS:
        known = ", ".join(map(str, sorted(_HEADS)))
        raise UserError(f"its encoder has tokens of width {width}, need {known}: give a checkpoint of a ViT")
    side = math.isqrt(positions.shape[1] - leading) * patches.shape[-1]
    shape = {"embed_dim": width, "depth": depth, "num_heads": _HEADS[width]}
    return {
        "_target_": "wsss_afa.models.backbones.timm_vit.TimmViT",
        "name": "vit_base_patch16_224.orig_in21k_ft_in1k",
        "pretrained": None,
        "num_affinity_blocks": 0,
        "fit": "crop",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "model_args": {**shape, "patch_size": patches.shape[-1], "img_size": side},
    }
