"""Checkpoints of the programs of WeCLIP's and WeCLIP+'s authors: weights alone, CLIP's among them.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.methods.released_texts import released_texts
from wsss_afa.models.released_clip import (
    clip_backbone,
    dino_backbone,
    rename_clip,
)

MARK = "decoder_fts_fuse.linear_fuse.weight"
"""A name that files of no other program have but ExCEL's, which are known by a name of their own."""


def released_weclip(
    state: Mapping[str, Tensor], class_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recipe and weights, with our names, of weights by the program's names, for classes of these names.

    Settings are those of the program: for 80 classes of its COCO settings, else of VOC's. The directions of
    texts are made by the text tower, which these files have.

    Raises:
        UserError: the package that reads texts is missing.
    """
    renamed = rename_clip(state)
    coco, plus = len(class_names) == len(COCO_CLASSES), "dino.cls_token" in renamed
    texts, directions = released_texts(state, class_names)
    own = {"texts": directions["classes"], "scenes": directions["backgrounds"]}
    blocks = {key.split(".")[2] for key in renamed if key.startswith("fusion.mlps.")}
    method = {
        "_target_": "wsss_afa.methods.weclip.method.WeCLIP",
        "texts": texts,
        "walk": {
            "_target_": "wsss_afa.ops.attention_walk.AttentionWalk",
            "box_threshold": 0.7 if coco else None if plus else 0.4,
        },
        "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement", "num_iter": 20},
        "phases": {"refined": 0},
        "weights": {"seg": 1.0, "aff": 0.1} | ({"cross": 0.1, "dice": 1.0} if plus else {}),
        "labels_from": "affinity",
        "layers": {"static": 8, "affinity": (8 if plus else 10) if coco else 6},
        "augmentation": {"padding": "black"},
        "dino": dino_backbone(renamed) if plus else None,
        "fused_blocks": len(blocks),
        "cam_input": -3 if plus and not coco else -2,
        "class_gated": plus,
        "label_padding": True,
        "decoder_dim": len(renamed["fusion.fuse.weight"]),
        "decoder_depth": len({key.split(".")[2] for key in renamed if key.startswith("decoder.blocks.")}),
    }
    return {"method": method, "backbone": clip_backbone(renamed)}, renamed | own
