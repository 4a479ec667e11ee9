"""Recipes of small networks, composed of the configuration as training does."""

from __future__ import annotations

import functools
from copy import deepcopy
from pathlib import Path

from hydra import compose, initialize_config_dir

from wsss_afa.methods.recipe import Recipe, make_recipe

CONF = Path(__file__).parents[2] / "conf"
_SMALL = ("method.decoder_dim=8", "backbone.pretrained=null")


@functools.cache
def _compose(overrides: tuple[str, ...], class_names: tuple[str, ...]) -> Recipe:
    with initialize_config_dir(str(CONF), version_base=None):
        return make_recipe(compose("train", [*_SMALL, *overrides]), class_names)


def small_recipe(
    *overrides: str, class_names: tuple[str, ...] = ("a", "b", "c"), variant: str = "tiny"
) -> Recipe:
    """The recipe of AFA on the least Mix Transformer, or of what the overrides choose."""
    backbone = (
        [] if any(each.startswith("backbone=") for each in overrides) else [f"backbone.variant={variant}"]
    )
    return deepcopy(_compose((*overrides, *backbone), class_names))
