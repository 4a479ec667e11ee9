"""What the programs' own settings can be; those of parts say so in the types of their arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from wsss_afa.cli.ranges import is_number
from wsss_afa.errors import UserError
from wsss_afa.files import CONFIG_DIR

TEXT, WHOLE, NUMBER, SWITCH, NULL = "a text", "a whole number", "a number", "true or false", "null"
TEXTS, NUMBERS = "a list of texts", "a list of numbers"

_NAMES = {
    (TEXT,): "task ckpt out output part push device split competition check host plot root archives "
    "base_url cache_dir labels data.root",
    (TEXT, NULL): "resume",
    (TEXT, TEXTS): "source format runs splits curves",
    (TEXTS,): "trust",
    (WHOLE,): "seed port workers pictures listed shards attempts num_workers",
    (NUMBER,): "patience wait timeout",
    (NUMBER, NUMBERS): "background",
    (NUMBERS,): "thresholds",
    (SWITCH,): "cams crf strict sweep_thresholds choose_threshold compile deterministic",
}
KINDS: Mapping[str, tuple[str, ...]] = {
    name: kinds for kinds, names in _NAMES.items() for name in names.split()
}
"""By name; others a program checks itself. A setting may also be null if it is by default."""


def check_kinds(config: Mapping[Any, Any], program: str) -> None:
    """Check the own settings of a composed configuration; a UserError names one of another kind."""
    own: Any = OmegaConf.to_container(OmegaConf.load(Path(CONFIG_DIR, f"{program}.yaml")))
    for name, kinds in KINDS.items():
        group, _, key = name.rpartition(".")
        defaults, given = (each.get(group) if group else each for each in (own, config))
        if not (isinstance(defaults, dict) and isinstance(given, dict)) or key not in defaults.keys() & given:
            continue
        value = given[key]
        kinds += (NULL,) * (defaults[key] is None)
        if not any(_IS[kind](value) for kind in kinds):
            shown, quoted = "null" if value is None else value, f"{name}='{value}'"
            text_meant = TEXT in kinds and isinstance(value, bool | int | float)
            remedy = f'write "{quoted}"' if text_meant else "set it anew"
            raise UserError(f"{name}={shown}, need {' or '.join(kinds)}: {remedy}")


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


_IS: Mapping[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str) and value != "",
    WHOLE: lambda value: type(value) is int,
    NUMBER: _is_finite,
    SWITCH: lambda value: isinstance(value, bool),
    NULL: lambda value: value is None,
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    NUMBERS: lambda value: isinstance(value, list) and all(map(_is_finite, value)),
}
