"""The method that a program runs: a checkpoint's, or without one a method whose labels need no training."""

from __future__ import annotations

from collections.abc import Sequence

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError, say
from wsss_afa.inference.match_data import match_data
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import Recipe, build, load

STATIC = "static"
"""The source of labels that come of frozen parts alone."""


def open_method(
    ckpt: str | None, trust: Sequence[str], recipe: Recipe | None, data: TaggedDataModule,
    given: Sequence[str],
) -> Method:  # fmt: skip
    """Open a method, and have the data hand out images as it knows them; see `match_data`.

    Args:
        ckpt: a checkpoint, or None.
        trust: what the checkpoint may build beside this library's parts.
        recipe: of the method that the configuration names, if it does.
        data: without its sets.
        given: the overrides of the command line.

    Raises:
        UserError: there is neither checkpoint nor method, or both; the method needs training; or the data has
            other classes than the checkpoint.
    """
    if ckpt is not None and recipe is not None:
        raise UserError(f"ckpt={ckpt} has its method with it: leave method=… out")
    if ckpt is not None:
        method = load(ckpt, trust)
    elif recipe is not None:
        method = _untrained(recipe)
    else:
        raise UserError("ckpt is missing: give ckpt=FILE, or a method that needs no training: method=clip_es")
    match_data(data, method, str(ckpt), given)
    return method


def _untrained(recipe: Recipe) -> Method:
    method = build(recipe, trust=None)
    name = type(method).__name__
    if STATIC not in method.sources:
        raise UserError(f"{name} has no labels before it is trained: give ckpt=FILE, or method=clip_es")
    if any(parameter.requires_grad for parameter in method.net.parameters()):
        say("untrained", f"{name} is not trained: its labels of source={STATIC} count, its segmentation not")
    return method
