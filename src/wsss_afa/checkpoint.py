"""Checkpoints that rebuild their network by themselves, and run no code while doing so.

Beside Lightning's state a checkpoint carries a recipe of plain containers: the resolved configuration of the
network and of the pseudo labels, the class names and the normalisation. A file from a stranger may name any
Python object in that configuration, so only the targets listed here are ever instantiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from hydra.utils import instantiate

from wsss_afa.models.afa import AFANet
from wsss_afa.models.weights import check_fit
from wsss_afa.ops.pseudo_label import PseudoLabeler
from wsss_afa.types import UserError

RECIPE_KEY = "wsss_afa"
"""Where in the checkpoint the recipe lies."""

_TARGETS = frozenset(
    {
        "wsss_afa.models.afa.AFANet",
        "wsss_afa.models.mix_transformer.mix_transformer",
        "wsss_afa.ops.cam.MultiScaleCAM",
        "wsss_afa.ops.par.PixelAdaptiveRefinement",
        "wsss_afa.ops.pseudo_label.PseudoLabeler",
        "wsss_afa.ops.random_walk.RandomWalkPropagation",
    }
)


class Recipe(TypedDict):
    """What rebuilds a network and names its outputs."""

    model: dict[str, Any]
    """Resolved configuration of the AFANet, without its ``num_classes``."""
    pseudo_label: dict[str, Any]
    """Resolved configuration of the PseudoLabeler."""
    class_names: list[str]
    """C foreground classes, in order."""
    mean: list[float]
    """Of the normalisation, RGB, 0…255."""
    std: list[float]
    """Of the normalisation, RGB, 0…255."""


def build(recipe: Recipe) -> tuple[AFANet, PseudoLabeler]:
    """Network with random weights, and labeler, from a recipe.

    Raises:
        UserError: the recipe names something that no checkpoint of this library names.
    """
    _check_targets(recipe["model"])
    _check_targets(recipe["pseudo_label"])
    net = instantiate(recipe["model"], num_classes=len(recipe["class_names"]))
    return cast(AFANet, net), cast(PseudoLabeler, instantiate(recipe["pseudo_label"]))


def load(path: str | Path) -> tuple[AFANet, PseudoLabeler, Recipe]:
    """Rebuild what a training run saved, from its file alone.

    Args:
        path: a ``.ckpt`` written by training.

    Raises:
        UserError: there is no such file, it cannot be read as plain tensors and containers, or it was not
            written by this library.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt={path}: no such file; give the path of a checkpoint, such as runs/…/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt={path}: cannot be read as tensors and plain containers ({reason})") from error
    if not isinstance(content, dict) or RECIPE_KEY not in content:
        raise UserError(f"ckpt={path}: was not written by wsss_afa.train (it has no '{RECIPE_KEY}' entry)")
    recipe = cast(Recipe, content[RECIPE_KEY])
    # Weights come from the checkpoint; the pretrained ones it began with are not fetched again.
    recipe["model"]["backbone"]["pretrained"] = None
    net, labeler = build(recipe)
    prefix = "net."
    state = {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    net.load_state_dict(check_fit(state, net))
    return net, labeler, recipe


def _check_targets(config: Any) -> None:
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None and target not in _TARGETS:
            raise UserError(
                f"the checkpoint wants to build {target}, which no checkpoint of ours does: refused"
            )
        for value in config.values():
            _check_targets(value)
    elif isinstance(config, list):
        for value in config:
            _check_targets(value)
