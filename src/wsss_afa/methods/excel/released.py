"""Checkpoints of the ExCEL authors' program: weights alone, CLIP's among them, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.methods.released_texts import released_texts
from wsss_afa.models.released_clip import clip_backbone, rename_clip

MARK = "encoder.visual.transformer.resblocks.11.attn.qkv.weight"
"""A name that no other program's files have."""
_GRID = 14  # rows and columns of CLIP's own position embedding


def released_excel(
    state: dict[str, Tensor], class_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recipe and weights, with our names, of weights by the program's names, for classes of these names.

    Settings are those of the program: for 80 classes of its COCO settings, else of VOC's. The directions of
    texts are made by the text tower, which these files have; the authors' phrases are not in them.

    Raises:
        UserError: the package that reads texts is missing.
    """
    renamed = rename_clip(state)
    renamed["backbone.pos_embed"] = native_positions(renamed["backbone.pos_embed"], _GRID)
    coco = len(class_names) == len(COCO_CLASSES)
    texts, directions = released_texts(state, class_names)
    method = {
        "_target_": "wsss_afa.methods.excel.method.ExCEL",
        "texts": texts,
        "walk": {
            "_target_": "wsss_afa.ops.attention_walk.AttentionWalk",
            "box_threshold": 0.88 if coco else 0.79,
            "inclusive": False,
        },
        "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement", "num_iter": 20},
        "phases": {"guided": 0},
        "weights": {"seg": 1.0, "aff": 0.1},
        "maps_from": "guided",
        "affinity_from": "label",
        "box_thresholds": {"static": 0.79, "affinity": 0.75, "guided": 0.79},
        "augmentation": {"padding": "black"},
        "label_padding": True,
        "decoder_dim": len(renamed["fusion.fuse.weight"]),
        "decoder_depth": len({key.split(".")[2] for key in renamed if key.startswith("decoder.blocks.")}),
    }
    own = {"texts": torch.cat([directions["classes"], directions["backgrounds"]])}
    return {"method": method, "backbone": clip_backbone(renamed)}, renamed | own


def native_positions(positions: Tensor, side: int) -> Tensor:
    """CLIP's position embedding (1, 1 + side², D) of the one (1, n, D) that training resized to its crops.

    The program keeps the resized one alone. Enlarging takes nothing away, so that it can be undone: the
    result resized again is what was given. An embedding that is not larger stays as it is.
    """
    grid = math.isqrt(positions.shape[1] - 1)
    if grid <= side:
        return positions
    identity = torch.eye(side, dtype=torch.float64)[None, None]
    enlarge = F.interpolate(identity, size=(grid, side), mode="bilinear", align_corners=False)[0, 0]
    undo = torch.linalg.pinv(enlarge)  # (side, grid)
    places = positions[0, 1:].double().reshape(grid, grid, -1)
    native = torch.einsum("ip,jq,pqd->ijd", undo, undo, places).flatten(0, 1)[None]
    return torch.cat([positions[:, :1], native.to(positions)], dim=1)
