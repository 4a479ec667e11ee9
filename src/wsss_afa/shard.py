"""Write shards: ``python -m wsss_afa.shard data=voc data.root=… out=DIR shards=64``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import track

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.sampler import say_skipped
from wsss_afa.data.shard_writer import write_shards
from wsss_afa.errors import UserError


def pack(data: TaggedDataModule, out: Path, shards: int, splits: list[str]) -> int:
    """Write the shards, say what is in them, and return the number of images; training goes without masks.

    Raises:
        UserError: A split is not known, files are missing, or the folder cannot take the shards.
    """
    makers = {"train": data.make_train_set, "val": data.make_val_set}
    if not splits or set(splits) - set(makers):
        raise UserError(f"splits={splits}, need train, val or both: set splits=[train,val], for example")
    sets = {name: makers[name]() for name in splits}
    show = partial(track, transient=True)
    manifest, broken = write_shards(sets, out, shards, data.num_workers, data.skip_broken, show)
    say_skipped(broken)
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name:<9} {split.images} images in {len(split.shards)} shards, {size:.1f} MB")
    print(f"written   {out}; train with data=streaming data.root={out}")
    return sum(split.images for split in manifest.splits.values())


@entry_point("shard")
def main(cfg: DictConfig) -> float:
    """Write the shards and return the number of images in them."""
    return float(pack(instantiate(cfg.data), Path(cfg.out).expanduser(), cfg.shards, list(cfg.splits)))


if __name__ == "__main__":
    main()
