"""Settings out of their range, which other packages would refuse late or take for something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsss_afa.errors import UserError

_LEAST = {
    "data.batch_size": 1,
    "data.num_workers": 0,
    "optim.warmup_steps": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.log_every_n_steps": 0,
    "callbacks.pictures.num_images": 0,
    "callbacks.report.num_images": 0,
    "patience": 1,
    "wait": 0,
    "seed": 0,
}
"""The lowest value of numbers."""


def check_ranges(config: Mapping[Any, Any]) -> None:
    """Check the plain settings of a composed configuration; those that it does not have are passed over.

    Raises:
        UserError: One is too low.
    """
    for name, least in _LEAST.items():
        value = _at(config, name)
        if value is not None and is_number(value) and value < least:
            raise UserError(f"{name}={value}, need {least} or more: set it anew")
    weights = _at(config, "method.weights")
    for name, weight in weights.items() if isinstance(weights, Mapping) else ():
        factors = weight.values() if isinstance(weight, Mapping) else [weight]
        if any(is_number(factor) and factor < 0 for factor in factors):
            raise UserError(f"method.weights.{name}={weight}, need 0 or more: set it anew")
    seed, interval = config.get("seed", 0), _at(config, "trainer.val_check_interval")
    if is_number(seed) and seed >= 2**32:
        raise UserError(f"seed={seed}, need less than {2**32}: set a smaller one")
    if is_number(interval) and interval <= 0:
        raise UserError(f"trainer.val_check_interval={interval}, need a number of steps: set 1 or more")


def _at(config: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name; None where there is none."""
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def is_number(value: Any) -> bool:
    """Whether a value is a number and no switch."""
    return isinstance(value, int | float) and not isinstance(value, bool)
