"""Checkpoints of the MoRe authors' program: weights alone, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.models.released_vit import released_backbone, released_settings, rename_vit
from wsss_afa.models.weights import Rules

MARK = "graph_layer.head_proj.weight"
"""A name that no other program's files have."""
_RULES: Rules = (
    (r"^graph_layer\.head_proj\.", "graph.head."),
    (r"^graph_layer\.tail_proj\.", "graph.tail."),
    (r"^graph_layer\.linear1\.", "graph.add."),
    (r"^graph_layer\.linear2\.", "graph.multiply."),
    (r"^graph_layer\.norm\.", "graph.norm."),
)
_UNUSED = "graph_layer._fc1."


def rename_more(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give released weights the names of our MoReNet.

    The program has registers before class tokens in one parameter; they come after them here, as timm's.
    """
    renamed = {key: v for key, v in rename_vit(state, _RULES).items() if not key.startswith(_UNUSED)}
    tokens, positions = renamed["backbone.cls_token"], renamed["backbone.pos_embed"]
    count, leading = len(renamed["classifier.weight"]), tokens.shape[1]
    renamed["backbone.cls_token"] = tokens[:, leading - count :]
    if leading > count:
        renamed["backbone.reg_token"] = tokens[:, : leading - count]
    registers, classes = positions[:, : leading - count], positions[:, leading - count : leading]
    renamed["backbone.pos_embed"] = torch.cat([classes, registers, positions[:, leading:]], dim=1)
    return renamed


def released_more(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recipe and weights, with our names, of weights by the program's names.

    Scales and thresholds are those of the program: for 80 classes of its COCO settings, else of VOC's.
    """
    renamed = rename_more(state)
    count, leading = len(renamed["classifier.weight"]), state["encoder.cls_token"].shape[1]
    coco = count == len(COCO_CLASSES)
    scales = [1.0, 0.5, 0.75, *[1.25] * coco, 1.5]
    maps = "wsss_afa.ops.cam.MultiScaleCAM"
    method = {
        "_target_": "wsss_afa.methods.more.method.MoRe",
        "cam": {"_target_": maps, "scales": scales},
        "lam": {"_target_": maps, "scales": [1.0, 0.5, 0.75, 1.25, 1.5, 1.75, 2.0], "rectify": False},
        "uncertain": {"_target_": "wsss_afa.ops.uncertain_tokens.UncertainTokens"},
        "phases": {"classification": 0},
        "regions_from": "cam",
        "registers": leading - count,
        **released_settings(renamed, coco),
    }
    backbone = released_backbone(renamed, leading) | {"positions": "bicubic_scale"}
    return {"method": method, "backbone": backbone}, renamed
