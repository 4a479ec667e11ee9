"""Frozen towers stay out of checkpoints: a recipe names their weights and SHA-256, and loading reads them.

A tower is a part of the network with the attributes ``frozen``, ``source`` and ``sha256``, which lies there
under the name of its setting: ``backbone``, or a setting of the method. One of random weights, which no file
has, is kept in checkpoints like everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.models.weights import kept_copy


def towers(net: nn.Module) -> list[str]:
    """Names of the frozen towers of a network whose weights a file has."""
    parts = net.named_children()
    return [n for n, part in parts if getattr(part, "frozen", False) and getattr(part, "sha256", None)]


def weights_of(names: Iterable[str], state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Those weights of a state dictionary that belong to the parts of these names below a prefix."""
    starts = tuple(f"{prefix}{name}." for name in names)
    return {key: value for key, value in state.items() if starts and key.startswith(starts)}


def pin(recipe: Mapping[str, Any], net: nn.Module) -> dict[str, Any]:
    """The recipe with source and SHA-256 of the towers of its network."""
    found = {name: net.get_submodule(name) for name in towers(net)}
    named = {name: {"pretrained": part.source, "sha256": part.sha256} for name, part in found.items()}
    return _changed(recipe, named)


def pinned(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Configurations, by name, of the towers whose weights a recipe names instead of having them."""
    parts = {**recipe.get("method", {}), "backbone": recipe.get("backbone")}.items()
    keys = ("frozen", "sha256", "pretrained")
    return {name: part for name, part in parts if isinstance(part, Mapping) and all(map(part.get, keys))}


def check_same(saved: Mapping[str, Any], recipe: Mapping[str, Any], net: nn.Module) -> None:
    """Raise a UserError where a saved recipe has towers of other files than the network has."""
    own = pinned(pin(recipe, net))
    for name, part in pinned(saved).items():
        if own.get(name, {}).get("sha256") != part["sha256"]:
            what = f"the checkpoint was trained with {name} of {part['pretrained']}, another file than here"
            raise UserError(f"{what}: give that file, SHA-256 {str(part['sha256'])[:12]}…")


def with_files(
    recipe: Mapping[str, Any], named: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """A recipe without weights, given the files of those `pinned` ones that its towers had.

    A file is looked for beside the checkpoint, in ``folder``, then where it was in training. A checkpoint may
    come from a stranger: no address that it names is asked, but timm's place on the hub.

    Raises:
        UserError: there is no such file.
    """
    return _changed(recipe, {name: {"pretrained": _find(name, part, folder)} for name, part in named.items()})


def _changed(recipe: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of a recipe in which parts have further settings."""
    method = {name: {**recipe["method"][name], **parts[name]} for name in parts if name != "backbone"}
    backbone = {**recipe["backbone"], **parts.get("backbone", {})}
    return {**recipe, "method": {**recipe["method"], **method}, "backbone": backbone}


def _find(name: str, part: Mapping[str, Any], folder: Path) -> str:
    source = str(part["pretrained"])
    beside = folder / Path(source).name
    if (copy := beside if beside.is_file() else kept_copy(source)) is not None:
        return str(copy)
    if source.startswith("timm/"):
        return source
    what = f"its {name} is the file {source} (SHA-256 {str(part['sha256'])[:12]}…), which is not here"
    raise UserError(f"{what}: put it beside the checkpoint")
