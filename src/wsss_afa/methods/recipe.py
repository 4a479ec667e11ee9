"""Checkpoints that rebuild their method by themselves, and run no code while doing so.

Beside Lightning's state a checkpoint carries a recipe of plain containers: the resolved configuration of the
method and of its backbone, and the class names. A file from a stranger may name any Python object in that
configuration, so only modules of this library's methods, models, operators and losses are ever built, unless
the user trusts another by name; and only plain values are handed to them: neither interpolations nor weights
to fetch.

Files of other forms are given a recipe first: those that the programs of the methods' authors wrote
(``released.py`` of each method), and those that this library wrote when it knew one method only
(`methods.first_form`).
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.methods.afa.released import class_names, released_checkpoint
from wsss_afa.methods.base import RECIPE_KEY, Method
from wsss_afa.methods.first_form import is_first_form, renew
from wsss_afa.methods.toco import released as toco
from wsss_afa.models.weights import check_fit

_PACKAGES = ("wsss_afa.methods.", "wsss_afa.models.", "wsss_afa.ops.", "wsss_afa.losses.")
"""Where what a recipe may build lives."""
_BUILDING = (LookupError, TypeError, ValueError, AttributeError, RecursionError)  # what wrong values raise
_WEIGHTS = ("pretrained", "checkpoint_path")  # settings that name weights: ours, and one of timm's
_PROGRAMS = {toco.MARK: toco.released_toco}
"""Readers of files of other programs than AFA's, by a name that no other program's files have."""


class Recipe(TypedDict):
    """What rebuilds a method and names its outputs."""

    method: dict[str, Any]
    """Resolved configuration of the method, without its backbone and ``num_classes``."""
    backbone: dict[str, Any]
    """Resolved configuration of the backbone."""
    class_names: list[str]
    """C foreground classes, in order."""


def build(recipe: Recipe, trust: Sequence[str] | None = ()) -> Method:
    """A method with random weights, or those that its backbone's configuration names, from any recipe.

    Args:
        trust: dotted names, as in ``module.Class``, of what may be built beside this library's own parts;
            None trusts all, for a configuration that is the user's own.

    Raises:
        UserError: the recipe names something that is neither a part of this library nor trusted.
    """
    parts = {"method": recipe["method"], "backbone": recipe["backbone"]}
    check_plain(parts, [trust] if isinstance(trust, str) else trust)
    method = instantiate(parts["method"], backbone=parts["backbone"], num_classes=len(recipe["class_names"]))
    if not isinstance(method, Method):
        raise UserError(
            f"method._target_={recipe['method'].get('_target_')} is no method: name a class of one"
        )
    method.recipe = cast(Mapping[str, Any], recipe)
    return method


def load(path: str | Path, trust: Sequence[str] = ()) -> Method:
    """Rebuild a trained method from its file alone; its ``recipe`` has the class names.

    Args:
        path: a ``.ckpt`` written by training, or a ``.pth`` that the program of a method's authors wrote,
            with or without the prefix ``module.`` on its names. Such a file has the classes of VOC if there
            are 20, of COCO if there are 80, else class_1, class_2, ….
        trust: see `build`.

    Raises:
        UserError: there is no such file, it cannot be read as plain tensors and containers, or no known
            program wrote it.
    """
    content = _read(Path(path))
    try:
        recipe, state = _own(content) if RECIPE_KEY in content else _released(content)
        method = build(cast(Recipe, recipe), trust)
        method.net.load_state_dict(check_fit(state, method.net))
    except UserError as error:
        raise UserError(f"ckpt={path}: {error}") from error
    except (*_BUILDING, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise UserError(f"ckpt={path}: {cause}") from error
        reason = f"{type(error).__name__}: {str(cause or error).partition(chr(10))[0]}"
        raise UserError(f"ckpt={path}: its recipe builds no network ({reason}): give another file") from error
    return method


def check_plain(config: Any, trust: Sequence[str] | None = ()) -> None:
    """Refuse what Hydra would make more of than a value or a part that may be built; for trust see `build`.

    Raises:
        UserError: a target is neither ours nor trusted, or a setting is no plain value.
    """
    if isinstance(config, Mapping):
        for key in config:
            if trust is not None and str(key).startswith("_") and key != "_target_":
                raise UserError(f"the checkpoint has the setting {key!r}, which no recipe has: refused")
        target = config.get("_target_")
        if target is not None and trust is not None and target not in trust and not _is_ours(target):
            raise UserError(
                f"the checkpoint wants to build {target}, which is no part of this library: refused; if you "
                f"wrote it yourself, add trust=[{target}]"
            )
        config = [*config, *config.values()]
    if isinstance(config, list | tuple):
        for value in config:
            check_plain(value, trust)
    elif isinstance(config, str) and (
        "${" in config or config == "???"
    ):  # Hydra would resolve it, and build what comes out
        raise UserError(f"the checkpoint has the setting {config!r}, which is no plain value: refused")
    elif not isinstance(config, str | int | float | None):
        raise UserError(f"the checkpoint has a {type(config).__name__} among its settings: refused")


def _is_ours(target: Any) -> bool:
    """Whether a dotted name is a module of this library, or a function of it that makes one.

    Those of this file are none: `load` would read a second file, with the trust that the first one names.
    """
    if not isinstance(target, str) or not target.startswith(_PACKAGES):
        return False
    name, _, leaf = target.rpartition(".")
    try:
        found = vars(importlib.import_module(name)).get(leaf)
        made = found if isinstance(found, type) else typing.get_type_hints(found).get("return")
    except (ImportError, NameError, TypeError):
        return False
    own = getattr(found, "__module__", None) == name != __name__
    return own and isinstance(made, type) and issubclass(made, nn.Module)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"ckpt={path}: no such file; give the path of a checkpoint, such as runs/…/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt={path}: cannot be read as tensors and plain containers ({reason})") from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"ckpt={path}: holds a {type(content).__name__}, need weights by name: give another file"
        )
    return content


def _released(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Recipe and weights of a file of some authors' program: weights by name, alone or under a key."""
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    for mark, read in _PROGRAMS.items():
        if mark in state:
            recipe, renamed = read(state)
            return recipe | {"class_names": class_names(len(renamed["classifier.weight"]))}, renamed
    return released_checkpoint(content)


def _own(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Recipe and weights of a checkpoint written by training."""
    recipe = content[RECIPE_KEY]
    recipe = _without_pretrained(renew(recipe) if is_first_form(recipe) else recipe)
    state = content["state_dict"].items()
    return recipe, {key.removeprefix("net."): value for key, value in state if key.startswith("net.")}


def _without_pretrained(config: Any) -> Any:
    """Weights come from the checkpoint; those that it began with, or names, are not fetched."""
    if isinstance(config, Mapping):
        return {k: None if k in _WEIGHTS else _without_pretrained(v) for k, v in config.items()}
    return [_without_pretrained(value) for value in config] if isinstance(config, list | tuple) else config
