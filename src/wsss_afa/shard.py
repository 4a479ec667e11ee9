"""Write shards: ``wsss-afa shard data=voc data.root=… out=DIR shards=64``."""

from __future__ import annotations

from omegaconf import DictConfig

from wsss_afa.cli.entry_point import entry_point


@entry_point("shard")
def main(cfg: DictConfig) -> float:
    """Write the shards and return the number of images in them."""
    from wsss_afa.programs import shard

    return shard.run(cfg)


if __name__ == "__main__":
    main()
