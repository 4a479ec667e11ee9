"""Write shards: ``python -m wsss_afa.shard data=voc data.root=… out=DIR shards=64``."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.progress import Progress

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.sampler import SampleSet, say_skipped
from wsss_afa.data.shard_writer import write_shards
from wsss_afa.errors import UserError


def select_splits(data: TaggedDataModule, names: list[str]) -> dict[str, SampleSet]:
    """The sets to write, in order; training goes without masks.

    Raises:
        UserError: A split is neither train nor val, or its files are missing.
    """
    makers = {"train": data.make_train_set, "val": data.make_val_set}
    if not names or set(names) - set(makers):
        raise UserError(f"splits={names}, need train, val or both: set splits=[train,val], for example")
    return {name: makers[name]() for name in names}


def pack(data: TaggedDataModule, out: Path, shards: int, splits: list[str]) -> int:
    """Write the shards, say what is in them, and return the number of images.

    Raises:
        UserError: A split is not known, files are missing, or the folder cannot take the shards.
    """
    sets = select_splits(data, splits)
    with Progress(transient=True) as bar:
        bars = {name: bar.add_task(f"{name:<9}") for name in sets}
        manifest, broken = write_shards(
            sets, out, shards, data.num_workers, data.skip_broken,
            lambda name, done, total: bar.update(bars[name], completed=done, total=total),
        )  # fmt: skip
    say_skipped(broken)
    images = 0
    for name, split in manifest.splits.items():
        count = sum(shard.images for shard in split.shards)
        size = sum(shard.bytes for shard in split.shards) / 1e6
        print(f"{name:<9} {count} images in {len(split.shards)} shards, {size:.1f} MB")
        images += count
    print(f"written   {out}; train with data=streaming data.root={out}")
    return images


@entry_point("shard")
def main(cfg: DictConfig) -> float:
    """Write the shards and return the number of images in them."""
    return float(pack(instantiate(cfg.data), Path(cfg.out).expanduser(), cfg.shards, list(cfg.splits)))


if __name__ == "__main__":
    main()
