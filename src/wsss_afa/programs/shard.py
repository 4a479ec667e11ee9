"""Write shards: ``wsss-afa shard data=voc data.root=… out=DIR shards=64``."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.data.shard_writer import pack


def run(cfg: DictConfig) -> float:
    """Write the shards and return the number of images in them."""
    return float(pack(instantiate(cfg.data), Path(cfg.out).expanduser(), cfg.shards, list(cfg.splits)))
