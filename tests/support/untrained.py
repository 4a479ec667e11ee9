"""Methods of random weights, and their checkpoints, for tests of what needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
import torch

from wsss_afa.cli.config_dir import CONFIG_DIR
from wsss_afa.methods.base import RECIPE_KEY, Method
from wsss_afa.methods.recipe import Recipe, build
from wsss_afa.train import make_recipe

CLASSES = ("disc", "box", "triangle")
AFA = ("+experiment=synthetic", "method.decoder_dim=16")
SUPERVISED = (
    "+experiment=second_stage", "method.decoder_dim=16", "backbone.variant=tiny", "backbone.pretrained=null",
)  # fmt: skip


def small_recipe(*overrides: str, base: Sequence[str] = AFA, class_names: Sequence[str] = CLASSES) -> Recipe:
    """The recipe of a small method; what it begins with is changed by overrides."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return make_recipe(hydra.compose("train", [*base, *overrides]), tuple(class_names))


def untrained(recipe: Recipe, seed: int = 0, std: float = 1.0) -> Method:
    """A method in evaluation mode whose segmentation and activation maps have more than one class.

    Args:
        recipe: as of `small_recipe`.
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
