"""Checkpoints of the AFA authors' program (``wetr_iter_*.pth``): weights alone, under other names.

Their recipe is read off the weights' shapes, and what no shape shows is the program's own setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wsss_afa.data.coco import COCO_CLASSES
from wsss_afa.data.voc import VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.methods.first_form import AFA_LOSSES
from wsss_afa.models.backbones.mix_transformer import VARIANTS
from wsss_afa.models.weights import Rules, apply_rules, count_from_zero, rename_mit, some_keys

_NAMES: Rules = (
    (r"^decoder\.linear_c([1-4])\.proj\.", r"decoder.projections.\1."),
    (r"^decoder\.linear_fuse\.conv\.", "decoder.fuse."),
    (r"^decoder\.linear_fuse\.bn\.", "decoder.norm."),
    (r"^decoder\.linear_pred\.", "decoder.predict."),
    (r"^attn_proj\.", "affinity_head."),
)
_KEYS = {
    "encoder.patch_embed1.proj.weight", "decoder.linear_fuse.conv.weight", "attn_proj.weight",
    "classifier.weight",
}  # fmt: skip


def released_checkpoint(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recipe and weights of a file of the AFA authors' program.

    Its content is weights by name.

    Raises:
        UserError: the names or the shapes are not those of a released AFA network.
    """
    try:
        state = rename_afa({str(key): value for key, value in content.items()})
    except UserError as error:
        raise UserError(f"was not written by wsss_afa.train (it has no recipe), and {error}") from None
    return released_recipe(state), state


def rename_afa(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give released weights, each name with or without a leading `module.`, the names of our AFANet.

    These are `backbone.*`, `decoder.*`, `affinity_head.*` and `classifier.weight`; the affinity head's 1×1
    convolution (1, M, 1, 1) becomes the vector (M,) of its weights.

    Raises:
        UserError: the keys are not those of a released AFA network.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not state.keys() >= _KEYS:
        raise UserError(
            f"this is no released AFA checkpoint (keys such as {some_keys(state)}); need encoder.*, "
            "decoder.*, attn_proj and classifier: give the file that the AFA authors' program wrote"
        )
    encoder = {key.removeprefix("encoder."): v for key, v in state.items() if key.startswith("encoder.")}
    heads = {
        count_from_zero(apply_rules(_NAMES, key), "decoder.projections"): value
        for key, value in state.items()
        if not key.startswith("encoder.")
    }
    heads["affinity_head.weight"] = heads["affinity_head.weight"].flatten()  # (1, M, 1, 1) → (M,)
    return {f"backbone.{key}": value for key, value in rename_mit(encoder).items()} | heads


def released_recipe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What rebuilds the method of released weights, given under our names.

    The encoder's variant, the decoder's width and the number of classes are those of the shapes. Strides and
    pseudo labels are the released program's, for 80 classes those of its COCO settings.

    Raises:
        UserError: the encoder has the widths and depths of no variant.
    """
    num_classes = len(state["classifier.weight"])
    coco = num_classes == len(COCO_CLASSES)
    num_iter, segmentation, propagation = (15, 5001, 15001) if coco else (10, 2001, 6001)
    return {
        "method": {
            "_target_": "wsss_afa.methods.afa.method.AFA",
            "cam": {"_target_": "wsss_afa.ops.cam.MultiScaleCAM"},
            "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement", "num_iter": num_iter},
            "propagate": {"_target_": "wsss_afa.ops.random_walk.RandomWalkPropagation"},
            "phases": {"classification": 0, "segmentation": segmentation, "propagation": propagation},
            **AFA_LOSSES,
            "decoder_dim": len(state["decoder.fuse.weight"]),
            "affinity_from_propagated": coco,
        },
        "backbone": {
            "_target_": "wsss_afa.models.backbones.mix_transformer.mix_transformer",
            "variant": _find_variant(state),
            "strides": [4, 2, 2, 1],
        },
        "class_names": class_names(num_classes),
    }


def class_names(count: int) -> list[str]:
    """Those of VOC for 20 classes, of COCO for 80, else class_1, class_2, …."""
    names = {len(classes): list(classes) for classes in (VOC_CLASSES, COCO_CLASSES)}
    return names.get(count, [f"class_{i + 1}" for i in range(count)])


def _find_variant(state: Mapping[str, Tensor]) -> str:
    blocks = r"backbone\.stages\.%d\.blocks\.\d+\.norm1\.weight"
    norms = [[len(state[key]) for key in state if re.fullmatch(blocks % i, key)] for i in range(4)]
    shape = tuple(max(stage, default=0) for stage in norms), tuple(len(stage) for stage in norms)
    for variant, (channels, depths, _) in VARIANTS.items():
        if shape == (tuple(channels), tuple(depths)):
            return variant
    raise UserError(
        f"its encoder has channels {list(shape[0])} and depths {list(shape[1])}, need those of one of "
        f"{', '.join(VARIANTS)}: give a checkpoint of a Mix Transformer"
    )
