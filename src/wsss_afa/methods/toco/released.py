"""Checkpoints of the ToCo authors' program: weights alone, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.models.released_vit import released_backbone, released_settings, rename_vit
from wsss_afa.models.weights import Rules

MARK = "proj_head.last_layer.weight_v"
"""A name that no other program's files have."""
_RULES: Rules = (
    (r"^proj_head\.", "projection."),
    (r"^proj_head_t\.", "teacher."),
    (r"\.last_layer\.weight_v$", ".directions"),
)


def rename_toco(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give released weights the names of our ToCoNet.

    Raises:
        UserError: the rows of a projection's last layer have another length than 1, which they train with.
    """
    renamed = rename_vit(state, _RULES)
    lengths = [renamed.pop(key) for key in list(renamed) if key.endswith("last_layer.weight_g")]
    if any(bool((length != 1).any()) for length in lengths):
        raise UserError("its projection has rows of another length than 1: give the file that ToCo wrote")
    return renamed


def released_toco(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recipe and weights, with our names, of weights by the program's names.

    The thresholds are those of the program: for 80 classes of its COCO settings, else of VOC's.
    """
    renamed = rename_toco(state)
    coco = len(renamed["classifier.weight"]) == len(COCO_CLASSES)
    widths = ("mlp.0.weight", "mlp.4.weight", "directions")
    hidden, bottleneck, outputs = (len(renamed[f"projection.{key}"]) for key in widths)
    method = {
        "_target_": "wsss_afa.methods.toco.method.ToCo",
        "cam": {"_target_": "wsss_afa.ops.cam.MultiScaleCAM"},
        "crops": {"_target_": "wsss_afa.ops.local_crops.LocalCrops"},
        "phases": {"contrast": 0},
        "labels_from": "cam",
        "projection": {"hidden": hidden, "bottleneck": bottleneck, "outputs": outputs},
        **released_settings(renamed, coco),
    }
    fixed = {"trainable_positions": False, "positions": "bicubic"}
    backbone = released_backbone(renamed, leading=1) | fixed
    return {"method": method, "backbone": backbone}, renamed
