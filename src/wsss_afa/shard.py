"""Write shards: ``python -m wsss_afa.shard data=voc data.root=… out=DIR shards=64``."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.shard_writer import pack


@entry_point("shard")
def main(cfg: DictConfig) -> float:
    """Write the shards and return the number of images in them."""
    return float(pack(instantiate(cfg.data), Path(cfg.out).expanduser(), cfg.shards, list(cfg.splits)))


if __name__ == "__main__":
    main()
