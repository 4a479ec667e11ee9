"""The data module of a folder of tagged photos."""

from __future__ import annotations

from dataclasses import dataclass

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.errors import UserError


@dataclass(eq=False, repr=False)
class FolderDataModule(TaggedDataModule):
    """Any folder of tagged photos, with or without masks; the folder is read at once, its images are not.

    Settings that are not named below are those of ``TaggedDataModule``.

    Args:
        root: The folder.
        labels: Tag file, relative to the root; None finds it.
        separator: Between tags in text; None finds out.
        val_fraction: Share of the photos that validate where the folder does not say, in (0, 1).
        split_seed: Of that choice, apart from ``seed``: runs of other seeds validate on the same photos.
        ignore_unlisted: Whether photos that the tag file does not name are left out instead of refused.
        max_side: Photos with a longer side in pixels are reduced to it; None keeps their size.

    Raises:
        UserError: A value is out of its range, or the folder cannot be read without guessing.
    """

    root: str
    labels: str | None = None
    separator: str | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    ignore_unlisted: bool = False
    max_side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side is not None and self.max_side < 1:
            raise UserError(
                f"data.max_side is {self.max_side}, need pixels or null: set it to 640, for example"
            )
        self._content = read_folder(
            self.root, self.labels, self.separator, self.val_fraction, self.split_seed, self.ignore_unlisted
        )
        self.class_names = self._content.class_names
        self.has_masks = bool(self._content.masks)

    def prepare_data(self) -> None:
        """Say what was found and how it was read."""
        print(f"data      {self._content.summary}")

    def make_set(self, split: str) -> TaggedFolder:
        """The photos of a split with their tags and, for ``val``, masks if there are any."""
        return TaggedFolder(self._content, split, self.has_masks and split == "val", self.max_side)
