"""Overrides that have another name now: commands that people have written down say how they go on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wsss_afa.errors import UserError

CHOICES = {
    "model=afa": "method=afa",
    "model=segmentation": "method=supervised",
    "model/backbone=mit": "backbone=mit",
    "model/backbone=timm": "backbone=timm_pyramid",
    "pseudo_label=none": "method.labels=cam",
    "pseudo_label=par": "method.labels=par",
    "pseudo_label=afa": "method.labels=afa",
    "pseudo_label=given": "method=supervised",
    "loss=afa": "method.weights.reg=0",
    "loss=afa_reg": "method.weights.reg=0.01",
    "loss=cross_entropy": "method=supervised",
    "callbacks=pruning": "callbacks=default",
}
"""Files that were chosen, and what stands for them."""
SETTINGS = {
    "model.backbone.": "backbone.",
    "model.": "method.",
    "pseudo_label.stage": "method.labels",
    "pseudo_label.start_step": "method.phases.segmentation",
    "pseudo_label.propagation_step": "method.phases.propagation",
    "pseudo_label.": "method.",
    "loss.seg_weight": "method.weights.seg",
    "loss.affinity_weight": "method.weights.aff",
    "loss.reg_weight": "method.weights.reg",
    "loss.affinity_cross_entropy": "method.affinity.cross_entropy",
    "loss.shared_counts": "method.shared_counts",
    "loss.dense_energy.": "method.dense_energy.",
    "loss.": "method.classification.",
}
"""Settings, or what they begin with if it ends in a dot; the first that fits counts."""


def refuse_renamed(words: Sequence[str]) -> None:
    """Raise a `UserError` that says what old overrides among the words of the command line are called now."""
    pairs = [(word, new) for word in words if (new := renamed(word)) is not None]
    if pairs:
        raise UserError("; ".join(f"{old} is now {new}" for old, new in pairs))


def renamed(word: str) -> str | None:
    """The override of today that says the same, with its values; None where the word is none of old."""
    sign, name, equals, value = re.fullmatch(r"([+~]*)([^=]*)(=?)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    choices = [CHOICES.get(f"{name}={one}") for one in value.split(",")]  # several of a multirun
    if found := [choice.partition("=") for choice in choices if choice is not None]:
        names = dict.fromkeys(key for key, _, _ in found)
        return " ".join(f"{each}={','.join(v for key, _, v in found if key == each)}" for each in names)
    old = next((old for old in SETTINGS if name == old or (old[-1] == "." and name.startswith(old))), None)
    if old is None:
        return None
    if old.endswith("_step"):  # a phase is named by its first step
        value = re.sub(r"\d+", lambda step: str(int(step[0]) + 1), value)
    return f"{sign}{SETTINGS[old]}{name.removeprefix(old)}{equals}{value}"
