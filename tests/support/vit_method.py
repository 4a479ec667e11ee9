"""Methods of plain ViTs on a tiny one, composed of the configuration as training does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build, make_recipe
from wsss_afa.types import Batch

CONF = Path(__file__).parents[2] / "conf"
TINY = (
    "backbone.name=vit_tiny_patch16_224", "backbone.pretrained=null", "method.decoder_dim=8",
    "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2}",
)  # fmt: skip


@functools.cache
def _compose(overrides: tuple[str, ...], small: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train", overrides=[*small, *overrides])


def method_of(
    *overrides: str, classes: Sequence[str] = ("cat", "dog", "car"), seed: int = 0,
    small: tuple[str, ...] = TINY,
) -> Method:  # fmt: skip
    """The method that training would build, in training mode, with its optimiser's recipe."""
    cfg = _compose(overrides, small)
    torch.manual_seed(seed)
    method = build(make_recipe(cfg, tuple(classes)), trust=None)
    method.optim = instantiate(cfg.optim)
    return method.train()


def check_finite(method: Method, batch: Batch, steps: Sequence[int], precision: torch.dtype) -> None:
    """Losses and gradients of steps are numbers; in bfloat16 under autocast."""
    for step in steps:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            terms = method.losses(batch, step)
            total = method.total(terms, step)
        total.backward()
        assert all(term.isfinite() for term in terms.values()), terms
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
