"""Checkpoints that rebuild their method by themselves, and run no code while doing so.

Beside Lightning's state a checkpoint carries a recipe of plain containers: the resolved configuration of the
method and of its backbone, and the class names. A file from a stranger may name any Python object in that
configuration, so only modules of this library's methods, models, operators and losses are ever built, unless
the user trusts another by name; only plain values are handed to them, of the type and in the range that their
constructors have (`methods.schema`): neither interpolations nor weights to fetch, but for frozen towers
(`methods.towers`); and weights are made only once it is known that those of the file fill them.

Files of other forms are given a recipe first: those that the programs of the methods' authors wrote
(``released.py`` of each method), and those that this library wrote when it knew one method only
(`methods.first_form`).
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from wsss_afa.errors import UserError, printable
from wsss_afa.methods.afa.released import class_names, released_checkpoint
from wsss_afa.methods.base import RECIPE_KEY, Method
from wsss_afa.methods.excel import released as excel
from wsss_afa.methods.first_form import is_first_form, renew
from wsss_afa.methods.more import released as more
from wsss_afa.methods.schema import OWN, check_settings, check_value, parameters, product
from wsss_afa.methods.toco import released as toco
from wsss_afa.methods.towers import pinned, weights_of, with_files
from wsss_afa.methods.untrusted import UnreadableError, read_plain
from wsss_afa.methods.weclip import released as weclip
from wsss_afa.methods.weights_file import ENDING, WEIGHTS, read_weights
from wsss_afa.models.weights import check_fit

_PACKAGES = ("wsss_afa.methods.", "wsss_afa.models.", "wsss_afa.ops.", "wsss_afa.losses.")
"""Where what a recipe may build lives."""
_BUILDING = (LookupError, TypeError, ValueError, AttributeError, RecursionError)  # what wrong values raise
_WEIGHTS = ("pretrained", "checkpoint_path")  # settings that name weights: ours, and one of timm's
_PROGRAMS = {toco.MARK: toco.released_toco, more.MARK: more.released_more}
"""Readers of files of other programs than AFA's, by a name that no other program's files have."""
_CLIP_PROGRAMS = {excel.MARK: excel.released_excel, weclip.MARK: weclip.released_weclip}
"""Likewise of files with towers of CLIP; their readers take class names. ExCEL's have both names."""
_MAX_VALUES, _MAX_DEPTH = 100_000, 20


class _Recipe(TypedDict):
    method: dict[str, Any]
    """Resolved configuration of the method, without its backbone and ``num_classes``."""
    backbone: dict[str, Any]
    """Resolved configuration of the backbone."""
    class_names: list[str]
    """C foreground classes, in order."""


class Recipe(_Recipe, total=False):
    """What rebuilds a method, names its outputs, and says how large the images were that it learned from."""

    max_side: int | None
    """Pixels that training images were reduced to, the longer side; None or missing where they were not."""


def make_recipe(cfg: DictConfig, class_names: Sequence[str]) -> Recipe:
    """The recipe of a program's configuration, for data of these classes."""
    parts = {
        name: cast(dict[str, Any], OmegaConf.to_container(cfg[name], resolve=True))
        for name in ("method", "backbone")
    }
    recipe = Recipe(method=parts["method"], backbone=parts["backbone"], class_names=list(class_names))
    if (side := cfg.data.get("max_side")) is not None:
        recipe["max_side"] = side
    return recipe


def build(recipe: Recipe, trust: Sequence[str] | None = ()) -> Method:
    """A method with random weights, or those that its backbone's configuration names, from any recipe.

    A constructor that has an argument ``class_names`` is given them.

    Args:
        trust: dotted names, as in ``module.Class``, of what may be built beside this library's own parts;
            None trusts all, for a configuration that is the user's own.

    Raises:
        UserError: the recipe names something that is neither a part of this library nor trusted, or a setting
            that a part does not take.
    """
    if trust is not None:
        check_recipe(recipe, [trust] if isinstance(trust, str) else trust)
    parts = {"method": recipe["method"], "backbone": recipe["backbone"]}
    for name, part in parts.items():
        if str(part["_target_"]).startswith(OWN):
            check_settings(part, name)
    names = list(recipe["class_names"])
    named = {"class_names": names} if "class_names" in parameters(parts["method"]["_target_"]) else {}
    method = instantiate(parts["method"], backbone=parts["backbone"], num_classes=len(names), **named)
    if not isinstance(method, Method):
        raise UserError(
            f"method._target_={recipe['method'].get('_target_')} is no method: name a class of one"
        )
    method.recipe = cast(Mapping[str, Any], recipe)
    return method


def check_recipe(recipe: Any, trust: Sequence[str] = ()) -> None:
    """Refuse what is no recipe of plain values and parts that may be built; for trust see `build`.

    Raises:
        UserError: it is not.
    """
    needed, known = _Recipe.__annotations__.keys(), Recipe.__annotations__.keys()
    if not isinstance(recipe, Mapping) or not needed <= recipe.keys() <= known:
        given = [*recipe] if isinstance(recipe, Mapping) else type(recipe).__name__
        raise UserError(f"its recipe has {given!r:.200}; need {', '.join(needed)}")
    for name in ("method", "backbone"):
        check_plain(recipe[name], trust)
        if not isinstance(recipe[name], Mapping) or "_target_" not in recipe[name]:
            raise UserError(f"its recipe's {name} has no _target_: give another file")
    side, names = recipe.get("max_side"), recipe["class_names"]
    if side is not None and (type(side) is not int or side < 1):
        raise UserError(f"its recipe has max_side={side!r:.50}; need pixels, or None")
    check_value(names, list[str], "class_names", "class_names", bounded=True)
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"its {len(names)} class names are empty or the same; need a name for each class")


def load(path: str | Path, trust: Sequence[str] = ()) -> Method:
    """Rebuild a trained method from its file alone; its ``recipe`` has the class names.

    Args:
        path: a ``.ckpt`` written by training; what ``export format=safetensors`` or ``hf`` wrote; or a
            ``.pth`` that the program of a method's authors wrote, with or without the prefix ``module.`` on
            its names. Such a file has the classes of VOC if there are 20, of COCO if there are 80, else
            class_1, class_2, ….
        trust: see `build`.

    Raises:
        UserError: there is no such file, it cannot be read as plain tensors and containers, or no known
            program wrote it.
    """
    content, trust = _read(Path(path)), [trust] if isinstance(trust, str) else trust
    try:
        recipe, state = _own(content, trust) if RECIPE_KEY in content else _released(content)
        named = pinned(content[RECIPE_KEY]) if RECIPE_KEY in content else {}
        if not trust:  # parts of a user's own may need to compute while they are made
            with torch.device("meta"):  # sizes, and no memory
                _fit(state, named, build(cast(Recipe, recipe)).net)
        method = build(cast(Recipe, with_files(recipe, named, Path(path).parent)), trust)
        method.net.load_state_dict(_fit(state, named, method.net))
    except UserError as error:
        raise UserError(f"ckpt={path}: {error}") from error
    except (*_BUILDING, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise UserError(f"ckpt={path}: {cause}") from error
        reason = f"{type(error).__name__}: {str(cause or error).partition(chr(10))[0]}"
        raise UserError(f"ckpt={path}: its recipe builds no network ({reason}): give another file") from error
    return method


def check_plain(config: Any, trust: Sequence[str] = ()) -> None:
    """Refuse what Hydra would make more of than a value or a part that may be built; for trust see `build`.

    Raises:
        UserError: a target is neither ours nor trusted, a setting is no plain value, or there are too many.
    """
    _Plain(trust).check(config, 0)


class _Plain:
    """A walk over a recipe, which may hold itself: it ends after so many values."""

    def __init__(self, trust: Sequence[str] | None):
        self.trust, self.left = trust, _MAX_VALUES

    def check(self, config: Any, depth: int) -> None:
        """Look at a value that stands so deep, and at those in it."""
        self.left -= 1
        if self.left < 0 or depth > _MAX_DEPTH:
            raise UserError("the checkpoint has too many settings, or too many levels of them: refused")
        if isinstance(config, Mapping):
            self._check_keys(config)
            config = [*config, *config.values()]
        if isinstance(config, list | tuple):
            for value in config:
                self.check(value, depth + 1)
        elif isinstance(config, str) and ("${" in config or config == "???"):
            # Hydra would resolve it, and build what comes out
            raise UserError(
                f"the checkpoint has the setting {config[:200]!r}, which is no plain value: refused"
            )
        elif not isinstance(config, str | int | float | None):
            raise UserError(f"the checkpoint has a {type(config).__name__} among its settings: refused")

    def _check_keys(self, config: Mapping[Any, Any]) -> None:
        for key in config:
            name = isinstance(key, str) and key.isprintable() and not key.startswith("_")
            if not name and key != "_target_":
                raise UserError(f"the checkpoint has the setting {key!r}, which no recipe has: refused")
        target = config.get("_target_")
        named = isinstance(target, str) and (self.trust is None or target in self.trust or _is_ours(target))
        if "_target_" in config and not named:
            shown = printable(target)
            raise UserError(
                f"the checkpoint wants to build {shown}, which is no part of this library: refused; if you "
                f"wrote it yourself, add trust=[{shown}]"
            )


def _is_ours(target: Any) -> bool:
    """Whether a dotted name is a module of this library, or a function of it that makes one.

    Those of this file are none: `load` would read a second file, with the trust that the first one names.
    """
    if not isinstance(target, str) or not target.startswith(_PACKAGES):
        return False
    name, _, leaf = target.rpartition(".")
    try:
        found = vars(importlib.import_module(name)).get(leaf)
    except (ImportError, ValueError):
        return False
    own = getattr(found, "__module__", None) == name != __name__
    made = product(found) if callable(found) else None
    return own and isinstance(made, type) and issubclass(made, nn.Module)


def _fit(state: Mapping[str, Tensor], towers: Collection[str], net: nn.Module) -> dict[str, Tensor]:
    """Weights of a file, and of towers that are filled already, if they fill a network exactly."""
    return check_fit({**state, **weights_of(towers, net.state_dict())}, net)


def _read(path: Path) -> Mapping[str, Any]:
    if (path / WEIGHTS).is_file():
        path = path / WEIGHTS
    if not path.is_file():
        raise UserError(f"ckpt={path}: no such file; give the path of a checkpoint, such as runs/…/best.ckpt")
    try:
        if path.suffix == ENDING:
            recipe, weights = read_weights(path)
            return {RECIPE_KEY: recipe, "state_dict": {f"net.{name}": each for name, each in weights.items()}}
        return read_plain(path)
    except (UnreadableError, OSError, MemoryError) as error:
        raise UserError(f"ckpt={path}: {str(error) or type(error).__name__}") from error


def _released(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Recipe and weights of a file of some authors' program: weights by name, alone or under a key."""
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    for mark, read in _PROGRAMS.items():
        if mark in state:
            recipe, renamed = read(state)
            return recipe | {"class_names": class_names(len(renamed["decoder.predict.weight"]) - 1)}, renamed
    for mark, read_with_names in _CLIP_PROGRAMS.items():
        if mark in state:
            names = class_names(len(state["decoder.linear_pred.weight"]) - 1)
            recipe, renamed = read_with_names(state, names)
            return recipe | {"class_names": names}, renamed
    return released_checkpoint(content)


def _own(content: Mapping[str, Any], trust: Sequence[str]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Recipe and weights of a checkpoint written by training."""
    recipe = content[RECIPE_KEY]
    if is_first_form(recipe):
        _Plain(None).check(
            [recipe["model"], recipe["pseudo_label"]], 0
        )  # before anything is looked up in it; what it may build, comes next
        recipe = renew(recipe)
    check_recipe(recipe, trust)
    state = content["state_dict"].items()
    weights = {key.removeprefix("net."): value for key, value in state if key.startswith("net.")}
    return _without_pretrained(recipe), weights


def _without_pretrained(config: Any) -> Any:
    """Weights come from the checkpoint; those that it began with, names, or would get by default are not."""
    if not isinstance(config, Mapping):
        return [*map(_without_pretrained, config)] if isinstance(config, list | tuple) else config
    kept = {key: None if key in _WEIGHTS else _without_pretrained(value) for key, value in config.items()}
    takes = parameters(config["_target_"]) if "_target_" in config else ()
    return kept | {name: None for name in _WEIGHTS if name in takes}
