"""Lightning data module of a folder of shards, on a disk or in an object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.sampler import DrawSampler
from wsss_afa.data.shards import ShardSet, WindowOrder, read_manifest
from wsss_afa.errors import UserError


@dataclass(eq=False, repr=False)
class StreamingDataModule(TaggedDataModule):
    """Shards written by ``python -m wsss_afa.shard``.

    Images are drawn from a window of shards, each once an epoch. There is no ``balanced``: drawing rare
    classes more often would need all tags in memory. The other settings are those of ``TaggedDataModule``.

    Args:
        root: Folder or URL with the manifest; of URLs fsspec knows http, s3, gs and others.
        window: Shards that are mixed at a time: more mix better and touch more files.

    Raises:
        UserError: A value is out of its range, or there is no manifest; from ``setup``, a split or, on a
            disk, a shard is missing.
    """

    root: str
    window: int = 8
    balanced: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UserError(f"data.window is {self.window}, need at least 1 shard: try 8")
        self._manifest = read_manifest(self.root)
        self.class_names = self._manifest.class_names
        self.has_masks = "val" in self._manifest.splits and self._manifest.splits["val"].has_masks

    def prepare_data(self) -> None:
        """Say what was found."""
        splits = [
            f"{own.images} {name} in {len(own.shards)} shards" for name, own in self._manifest.splits.items()
        ]
        print(f"data      {self._manifest.root}: {'; '.join(splits)}; {self.num_classes} classes")

    def make_set(self, split: str) -> ShardSet:
        """The images of a split with their tags and, if it has any, masks."""
        return ShardSet(self._manifest, split, check=not self.skip_broken)

    def _sampler(self, length: int) -> DrawSampler:
        sampler = super()._sampler(length)
        counts = [shard.images for shard in self._manifest.splits["train"].shards]
        sampler.order = partial(WindowOrder, counts, self.window, self.seed)
        return sampler
