"""Lightning data module of a folder of shards, on a disk or in an object store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.sampler import DrawSampler
from wsss_afa.data.shards import ShardSet, WindowOrder, read_manifest
from wsss_afa.errors import UserError


class StreamingDataModule(TaggedDataModule):
    """Shards written by ``python -m wsss_afa.shard``.

    Images are drawn from a window of shards, each once an epoch; drawing rare classes more often would need
    all tags in memory, so ``balanced`` is no setting here.

    Settings that are not named below are those of ``TaggedDataModule``.

    Args:
        root: Folder or URL with the manifest; of URLs fsspec knows http, s3, gs and others.
        window: Shards that are mixed at a time: more mix better and touch more files.

    Raises:
        UserError: A value is out of its range, or there is no manifest; from ``setup``, a split or, on a
            disk, a shard is missing.
    """

    def __init__(
        self,
        root: str,
        window: int = 8,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(
            batch_size, crop_size, num_workers, scale, flip, seed, balanced=False, skip_broken=skip_broken
        )
        if window < 1:
            raise UserError(f"data.window is {window}, need at least 1 shard: try 8")
        self._window = window
        self._manifest = read_manifest(root)
        val = self._manifest.splits.get("val")
        self.has_masks = val is not None and val.has_masks

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the manifest names."""
        return self._manifest.class_names

    def prepare_data(self) -> None:
        """Say what was found."""
        splits = [
            f"{sum(shard.images for shard in split.shards)} {name} in {len(split.shards)} shards"
            for name, split in self._manifest.splits.items()
        ]
        print(f"data      {self._manifest.root}: {'; '.join(splits)}; {self.num_classes} classes")

    def make_train_set(self) -> ShardSet:
        """The training images with their tags."""
        return self._open("train")

    def make_val_set(self) -> ShardSet:
        """The validation images with their tags and, if there are any, masks.

        Raises:
            UserError: No validation split was written.
        """
        return self._open("val")

    def _open(self, split: str) -> ShardSet:
        images = ShardSet(self._manifest, split)
        if not self.skip_broken:
            images.check_files()
        return images

    def _sampler(self, length: int) -> DrawSampler:
        sampler = super()._sampler(length)
        counts = [shard.images for shard in self._manifest.split("train").shards]
        sampler.order = partial(WindowOrder, counts, self._window, self.seed)
        return sampler
