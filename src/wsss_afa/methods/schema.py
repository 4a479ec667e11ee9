"""What a configuration may hold, read off the constructors that it names, before any of them is called.

A setting has the type that its constructor's signature gives it. A number lies in a range that bounds the
memory and the time which it can cost: the one of its name in `RANGES`, else the one of its type. Settings
that no constructor takes are named all at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import pydoc
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Union

from torch import nn

from wsss_afa.errors import UserError

RANGES: Mapping[str, tuple[float, float]] = {
    "affinity_radius": (0, 256),
    "background": (0, 1),
    "chunk": (1, 1e6),
    "decoder_dim": (1, 65_536),
    "depth": (1, 1000),
    "dilations": (1, 256),
    "downscale": (1, 16),
    "drop_path_rate": (0, 1),
    "eval_threshold": (0, 1),
    "high": (0, 1),
    "low": (0, 1),
    "mean": (-1000, 1000),
    "num_affinity_blocks": (0, 1000),
    "num_iter": (0, 200),
    "num_log_steps": (0, 12),
    "phases": (0, 1e12),
    "pool_top_k": (0, 65_536),
    "power": (0, 16),
    "radius": (0, 256),
    "scale": (0.01, 16),
    "scales": (0.1, 3),
    "sigma_color": (1e-3, 1e6),
    "sigma_position": (1e-3, 1e6),
    "std": (1e-3, 1000),
    "strides": (1, 64),
    "tag_smoothing": (0, 1),
    "trainable_from": (0, 1000),
}
"""Smallest and largest number of settings by name; in a list or a mapping, of each in it."""
LENGTHS: Mapping[str, tuple[int, int]] = {
    "mean": (3, 3),
    "std": (3, 3),
    "scales": (1, 8),
    "dilations": (1, 16),
    "class_names": (1, 65_536),
    "names": (0, 65_536),
    "positive_weight": (1, 65_536),
}
"""How many values a setting has by name; others have at most `MAX_LENGTH`."""
MAX_LENGTH = 64
OWN = "wsss_afa."
"""What the names of this library's parts begin with."""
_MAX_TEXT = 1000  # characters
_WHOLE, _REAL = (-65_536, 65_536), (-1e9, 1e9)  # numbers of other names


def check_settings(config: Mapping[str, Any], name: str, bounded: bool = True) -> None:
    """Compare the settings of a part, and of the parts in it, with what their constructors take.

    A value that is still missing (``???``) is left to whoever reads it, and so are Hydra's own keys (``_…``).

    Args:
        config: a configuration with ``_target_``, the dotted name of a class or a function.
        name: of the part, for messages, such as ``method``.
        bounded: whether numbers have to lie in their range, too.

    Raises:
        UserError: a setting is unknown, or of another type or size; or a part is none of the kind asked for.
    """
    made = _locate(config["_target_"], name)
    takes, hints = inspect.signature(made).parameters, _hints(made)
    settings = {str(key): value for key, value in config.items() if not str(key).startswith("_")}
    open_ended = any(each.kind is each.VAR_KEYWORD for each in takes.values())
    if unknown := [] if open_ended else [f"{name}.{key}" for key in settings if key not in takes]:
        are = "is no setting" if len(unknown) == 1 else "are no settings"
        kind, out = config["_target_"].rpartition(".")[2], f"~{' ~'.join(unknown)} where an experiment has it"
        raise UserError(f"{', '.join(unknown)} {are} of {kind}: leave out, with {out}")
    for key, value in settings.items():
        if value != "???":
            check_value(value, hints.get(key, Any), f"{name}.{key}", key, bounded)


def check_parts(config: Any, name: str = "") -> None:
    """Compare the types of the settings of all parts in a program's configuration, ours and Lightning's.

    Raises:
        UserError: see `check_settings`.
    """
    if not isinstance(config, Mapping):
        return
    if str(config.get("_target_", "")).startswith((OWN, "lightning.")):
        check_settings(config, name, bounded=False)
    else:
        for key, value in config.items():
            check_parts(value, f"{name}.{key}" if name else str(key))


def _locate(target: Any, name: str) -> Callable[..., Any]:
    try:
        found = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{name}._target_={target} cannot be imported: {error}") from error
    if not callable(found):
        what = "is not to be found" if found is None else "is neither a class nor a function"
        raise UserError(f"{name}._target_={target} {what}: correct it")
    return typing.cast(Callable[..., Any], found)


def parameters(target: str) -> Collection[str]:
    """Names of the arguments of what a dotted name means."""
    return inspect.signature(_locate(target, "")).parameters


def product(made: Callable[..., Any]) -> Any:
    """The class of what a class or an annotated function makes; None where nothing says."""
    return made if isinstance(made, type) else _hints(made).get("return")


def check_value(value: Any, hint: Any, name: str, key: str, bounded: bool) -> None:
    """Compare one value with its type and, if bounded, with the range and length of its key; see above."""
    if isinstance(value, Mapping) and "_target_" in value:
        _check_part(value, hint, name, bounded)
    elif not _fits(value, hint):
        text = str in _options(hint) and isinstance(value, int | float)
        remedy = f""": write "{name}='{value}'" """.rstrip() if text else ""
        raise UserError(f"{name}={_shown(value)}, need {describe(hint)}{remedy}")
    elif isinstance(value, Mapping | list | tuple):
        _check_length(value, name, key if bounded else "")
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for (place, each), inner in zip(items, _inner(hint, value), strict=True):
            path = f"{name}.{place}" if isinstance(value, Mapping) else f"{name}[{place}]"
            check_value(each, inner, path, key, bounded)
    elif bounded:
        _check_size(value, name, key)


def _inner(hint: Any, value: Any) -> list[Any]:
    """Types of the values in a container of a type."""
    kind = Mapping if isinstance(value, Mapping) else Sequence
    for option in _options(hint):
        origin, inner = typing.get_origin(option), typing.get_args(option)
        if isinstance(origin, type) and issubclass(origin, kind):
            fixed = kind is Sequence and len(inner) == len(value) and ... not in inner
            return list(inner) if fixed else [inner[1 if kind is Mapping else 0]] * len(value)
    return [Any] * len(value)


def _check_part(config: Mapping[str, Any], hint: Any, name: str, bounded: bool) -> None:
    options = _options(hint)
    if all(each in _SIMPLE or typing.get_origin(each) for each in options):
        raise UserError(f"{name} is a part with _target_, need {describe(hint)}")
    if not str(config["_target_"]).startswith(OWN):  # a user's own part may be what it likes
        return
    kinds = tuple(each for each in options if isinstance(each, type) and issubclass(each, nn.Module))
    made = product(_locate(config["_target_"], name))
    if kinds and not (isinstance(made, type) and issubclass(made, kinds)):
        raise UserError(f"{name}._target_={config['_target_']}, need {describe(hint)}")
    check_settings(config, name, bounded)


def _check_length(value: Any, name: str, key: str) -> None:
    low, high = LENGTHS.get(key, (0, MAX_LENGTH))
    if not low <= len(value) <= high:
        raise UserError(f"{name} has {len(value)} values, need {low} to {high}")


def _check_size(value: Any, name: str, key: str) -> None:
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise UserError(f"{name} has {len(value)} characters, need {_MAX_TEXT} at most")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = RANGES.get(key, _WHOLE if isinstance(value, int) else _REAL)
        if not low <= value <= high:
            raise UserError(f"{name}={value}, need a number from {low:g} to {high:g}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type; kinds of types that stand for parts of other libraries take all."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _SIMPLE:
        return isinstance(value, hint)
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return isinstance(value, str)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)  # what is in it, comes next
    if isinstance(origin, type) and issubclass(origin, Sequence):
        fixed = len(inner) > 1 and ... not in inner
        return isinstance(value, list | tuple) and (not fixed or len(value) == len(inner))
    return not (
        isinstance(hint, type) and (issubclass(hint, nn.Module) or getattr(hint, "_is_protocol", False))
    )


_SIMPLE: Mapping[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null",
}  # fmt: skip


def describe(hint: Any) -> str:
    """A type in words."""
    options = _options(hint)
    values = [
        str(value)
        for each in options
        if typing.get_origin(each) is Literal
        for value in typing.get_args(each)
    ]
    words = [_describe_one(each) for each in options if typing.get_origin(each) is not Literal]
    words += [f"one of {', '.join(dict.fromkeys(values))}"] if values else []
    return " or ".join(dict.fromkeys(words))


def _describe_one(hint: Any) -> str:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"names with {describe(inner[1])} for each"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return (
            f"a list of {len(inner)}"
            if len(inner) > 1 and ... not in inner
            else f"a list, each {describe(inner[0])}"
        )
    return f"a part with _target_, of the kind {getattr(hint, '__name__', hint)}"


def _options(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments by name; those that cannot be looked up are left out."""
    of: Any = made if dataclasses.is_dataclass(made) or not isinstance(made, type) else made.__init__  # type: ignore[misc]
    try:
        return typing.get_type_hints(of)
    except (NameError, TypeError, AttributeError):
        return {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
