"""The method that a program runs: a checkpoint's, or without one a method whose labels need no training."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import UserError, say
from wsss_afa.inference.match_data import match_data
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build, load, make_recipe

STATIC = "static"
"""The source of labels that come of frozen parts alone."""


def open_method(cfg: DictConfig, data: TaggedDataModule, given: Sequence[str]) -> Method:
    """Open a method, and have the data hand out images as it knows them; see `match_data`.

    Args:
        cfg: has ``ckpt`` and ``trust``, and ``method`` and ``backbone`` where no checkpoint is given.
        data: without its sets.
        given: the overrides of the command line.

    Raises:
        UserError: there is neither checkpoint nor method, or both; the method needs training; or the data has
            other classes than the checkpoint.
    """
    if cfg.ckpt is not None:
        if cfg.method is not None:
            raise UserError(f"ckpt={cfg.ckpt} has its method with it: leave method=… out")
        method = load(cfg.ckpt, cfg.trust)
    elif cfg.method is None:
        raise UserError("ckpt is missing: give ckpt=FILE, or a method that needs no training: method=clip_es")
    else:
        method = build(make_recipe(cfg, data.class_names), trust=None)
        if STATIC not in method.sources:
            name = type(method).__name__
            raise UserError(f"{name} has no labels before it is trained: give ckpt=FILE, or method=clip_es")
        say("untrained", f"labels of source={STATIC} alone come of {type(method).__name__}'s frozen parts")
    match_data(data, method, cfg.ckpt, given)
    return method
