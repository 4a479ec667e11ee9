"""Methods of random weights, and their checkpoints, for tests of what needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from recipes import small_recipe
from wsss_afa.methods.base import RECIPE_KEY, Method
from wsss_afa.methods.recipe import Recipe, build

CLASSES = ("disc", "box", "triangle")


def scene_recipe(*overrides: str, class_names: Sequence[str] = CLASSES) -> Recipe:
    """The recipe of AFA for generated scenes."""
    return small_recipe("+experiment=synthetic", *overrides, class_names=tuple(class_names))


def supervised_recipe(*overrides: str, class_names: Sequence[str] = CLASSES) -> Recipe:
    """The recipe of a network that learns from labels that are given."""
    return small_recipe("+experiment=second_stage", *overrides, class_names=tuple(class_names))


def untrained(recipe: Recipe, seed: int = 0, std: float = 1.0) -> Method:
    """A method in evaluation mode whose segmentation and activation maps have more than one class.

    Args:
        recipe: as of `scene_recipe`.
        seed: of the weights.
        std: of the last layers' weights.
    """
    torch.manual_seed(seed)
    method = build(recipe)
    for name, parameter in method.net.named_parameters():
        if name in ("decoder.predict.weight", "classifier.weight"):
            torch.nn.init.normal_(parameter, std=std)
    return method.eval()


def save(method: Method, path: Path) -> Path:
    """Write a method as training does, without what only a continuation needs."""
    state = {f"net.{name}": value for name, value in method.net.state_dict().items()}
    torch.save({"state_dict": state, RECIPE_KEY: dict(method.recipe)}, path)
    return path
