"""Recipes of checkpoints that were written when there was one method, AFA, or training on given labels.

They have a network (``model``, with its backbone inside), pseudo labels (``pseudo_label``) and a
normalisation, which was ImageNet's for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOVED = {
    "wsss_afa.models.mix_transformer.mix_transformer": (
        "wsss_afa.models.backbones.mix_transformer.mix_transformer"
    ),
    "wsss_afa.models.timm_features.TimmFeatures": "wsss_afa.models.backbones.timm_pyramid.TimmPyramid",
    "wsss_afa.models.afa.AFANet": "wsss_afa.methods.afa.method.AFA",
    "wsss_afa.models.segmentation_net.SegmentationNet": "wsss_afa.methods.supervised.Supervised",
}
_SUPERVISED = {"phases": {"segmentation": 0}, "weights": {"seg": 1.0}}
AFA_LOSSES: dict[str, Any] = {
    "weights": {"cls": 1.0, "seg": 0.1, "aff": 0.1, "reg": 0.0},
    "classification": {"_target_": "wsss_afa.losses.classification.ClassificationLoss"},
    "affinity": {"_target_": "wsss_afa.losses.affinity.AffinityLoss"},
    "dense_energy": {"_target_": "wsss_afa.losses.dense_energy.DenseEnergyLoss"},
}
"""AFA's settings of losses, for files that have none: these, and those that its authors released."""


def is_first_form(recipe: Any) -> bool:
    """Whether a recipe is of that form."""
    return isinstance(recipe, Mapping) and "model" in recipe and "pseudo_label" in recipe


def renew(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The same in today's form; losses, which a trained network does not need, are the default ones.

    Targets that the form never had are left as they are, so that whoever builds the recipe refuses them.
    """
    network, labels = dict(recipe["model"]), dict(recipe["pseudo_label"])
    backbone = dict(network.pop("backbone"))
    backbone["_target_"] = _MOVED.get(backbone["_target_"], backbone["_target_"])
    network["_target_"] = _MOVED.get(network["_target_"], network["_target_"])
    supervised = network["_target_"].endswith(".Supervised")
    method = network | (_SUPERVISED if supervised else _afa(labels))
    return {"method": method, "backbone": backbone, "class_names": recipe["class_names"]}


def _afa(labels: dict[str, Any]) -> dict[str, Any]:
    for name in ("_target_", "mean", "std"):
        labels.pop(name, None)
    phases = {
        "classification": 0,
        "segmentation": labels.pop("start_step", 2000) + 1,
        "propagation": labels.pop("propagation_step", 6000) + 1,
    }
    stage = labels.pop("stage", "afa")
    return labels | AFA_LOSSES | {"labels": stage, "phases": phases}
