"""Any folder of tagged photos: what is in it, how it was read, and which part validates.

Tags come from one tag file in the folder (``tags.py`` has its forms), from one in each of its sub-folders
``train`` and ``val``, or else from folders: a sub-folder for each class, and ``background`` for photos
without any. Photos may lie in any depth. A folder ``masks`` beside them holds the truth for evaluation: for
each photo a palette or grey PNG of its size and name; background is 0, class c is c + 1, ignored pixels are
255. ``classes.txt``, one name a line, settles which classes there are and their order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.folder.photos import (
    bare,
    class_folders,
    find_photo,
    find_photos,
    group_by_name,
    match_rows,
    read_tables,
    walk_images,
)
from wsss_afa.data.folder.split import stratified_split
from wsss_afa.data.folder.tags import SPLITS, Row, Table
from wsss_afa.data.images import all_of, read_image, read_mask, shrink
from wsss_afa.errors import UserError
from wsss_afa.text import say
from wsss_afa.types import IGNORE_INDEX, Sample

UNUSED = "(unused)"  # name of the class that takes the place of a 255th: no image has it


@dataclass(frozen=True)
class PhotoFolder:
    """What ``read_folder`` found; lists run over the tagged photos."""

    root: Path
    class_names: tuple[str, ...]  # C foreground classes
    files: list[str]  # relative to the root, with forward slashes
    labels: NDArray[np.bool_]  # tags, (n, C)
    splits: list[str]  # train, val or test of each photo
    masks: dict[str, Path]  # mask of each file that has one
    summary: str  # what was found and how it was read, in one line


class TaggedFolder:
    """Photos of one split with their tags and, for evaluation, masks.

    Photos are turned upright as their EXIF orientation says, so a mask has the size of what viewers show.

    Args:
        content: From ``read_folder``.
        split: ``train`` or ``val``.
        with_mask: Whether samples carry the mask. No mask is opened otherwise.
        max_side: Photos with a longer side are reduced to it, and their masks with them.

    Raises:
        UserError: A photo of the split has no mask; from an item, a file cannot be read or does not fit.
    """

    def __init__(
        self, content: PhotoFolder, split: str, with_mask: bool = False, max_side: int | None = None
    ) -> None:
        chosen = np.flatnonzero(np.array(content.splits) == split).tolist()
        self.root, self.class_names, self.summary = content.root, content.class_names, content.summary
        self.files = [content.files[i] for i in chosen]
        self.labels = content.labels[chosen]
        self._masks, self._max_side = content.masks if with_mask else None, max_side
        absent = [file for file in self.files if with_mask and file not in content.masks]
        if absent:
            count = f"{len(absent)} of the {len(chosen)} masks of split {split!r}, {absent[0]} first"
            others = [f"{self.root / file} has no mask: add it" for file in absent[1:]]
            raise all_of([f"{self.root / 'masks'} lacks {count}: add them or remove the folder", *others])

    @property
    def names(self) -> list[str]:
        """The photos' names, in order."""
        return [bare(file) for file in self.files]

    @property
    def paths(self) -> list[Path]:
        """The photo files, in order."""
        return [self.root / file for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        reduced = self._max_side if self._masks is None else None  # a mask is compared with the whole photo
        image = read_image(self.root / file, upright=True, max_side=reduced)
        label = self.labels[index].astype(np.float32)
        sample = Sample(image=shrink(image, self._max_side), class_label=label, name=bare(file))
        if self._masks is not None:
            path = self._masks[file]
            mask = read_mask(path, image.shape[:2], len(label))
            if len(label) == 1 and label[0] and set(np.unique(mask)) == {0, IGNORE_INDEX}:
                raise UserError(f"{path} has the labels 0 and 255, need 1 for the class: change it")
            sample["mask"] = shrink(mask, self._max_side, nearest=True)
        return sample


def read_folder(
    root: str | Path,
    labels: str | None = None,
    separator: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    ignore_unlisted: bool = False,
) -> PhotoFolder:
    """Find the photos of a folder, their tags, masks and splits, without opening an image.

    Photos are split as the tag file's column ``split`` says, as the sub-folders ``train`` and ``val`` say, or
    else by iterative stratification; if there are masks, only photos with a mask are then chosen to validate.

    ``FolderDataModule`` explains the arguments; ``seed`` is its ``split_seed``.

    Raises:
        UserError: The folder cannot be read, or not without guessing.
    """
    root = Path(root).expanduser()
    photos = find_photos(root)
    table = read_tables(root, labels, separator) or class_folders(root, photos)
    rows = match_rows(root, photos, table, ignore_unlisted)
    files = [file for file in photos if file in rows]
    names = _class_names(root, table)
    tags = np.array([[name in rows[file].tags for name in names] for file in files], bool)
    tags = tags.reshape(len(files), len(names))
    _check_contrast(root, names, tags)
    masks = _find_masks(root, photos)
    splits, how = _explicit_splits(root, files, rows)
    if not how:
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, need a share in (0, 1): try 0.1")
        if len(files) < 2:
            raise UserError(f"{root} has {len(files)} photo, need two, to train and to validate: add some")
        candidates = np.array([file in masks for file in files]) if masks else None
        validates = stratified_split(tags, val_fraction, seed, candidates)
        splits, how = np.where(validates, "val", "train").tolist(), f"stratified, seed {seed}"
    content = PhotoFolder(root, names, files, tags, splits, masks, "")
    return replace(content, summary=_summarise(content, table.how, how))


def _class_names(root: Path, table: Table) -> tuple[str, ...]:
    used = {tag: row.where for row in reversed(table.rows) for tag in row.tags}
    path, listed = root / "classes.txt", table.class_names
    if path.is_file():
        lines = map(str.strip, path.read_text("utf-8-sig").splitlines())
        listed = tuple(dict.fromkeys(line for line in lines if line and line.lower() != "background"))
    names = list(listed or sorted(used))
    unknown = sorted(used.keys() - set(names))
    if unknown:
        raise UserError(f"{used[unknown[0]]} has the tag {unknown[0]!r}, which is not in {path}: mend either")
    spelt = {name.lower(): name for name in reversed(names)}
    for name in names:
        if spelt[name.lower()] != name:
            raise UserError(f"{root} has the classes {spelt[name.lower()]!r} and {name!r}: spell them alike")
    if len(names) >= IGNORE_INDEX:  # no class may have the label of ignored pixels
        names.insert(IGNORE_INDEX - 1, UNUSED)
    return tuple(names)


def _check_contrast(root: Path, names: tuple[str, ...], tags: NDArray[np.bool_]) -> None:
    shown = np.flatnonzero(tags.any(0))
    if not len(shown):
        raise UserError(f"{root} has {len(tags)} photos without any tag, need some: fill the tag file")
    if len(shown) == 1 and tags.any(1).all():
        problem = f"has {len(tags)} photos, all of the class {names[shown[0]]!r}, which teach nothing"
        raise UserError(f"{root} {problem}: add photos without it, in a folder `background` or without tags")


def _find_masks(root: Path, photos: list[str]) -> dict[str, Path]:
    folder = root / "masks"
    if not folder.is_dir():
        return {}
    by_name, masks = group_by_name(photos), dict[str, Path]()
    for path in walk_images(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() != ".png":
            raise UserError(f"{path} is no PNG, need one: save it anew, or rename `masks` if it is a class")
        file = find_photo(root, by_name, Row(bare(name), (), "", str(path)))
        if file in masks:
            raise UserError(f"{path} and {masks[file]} are masks of {file}: delete one")
        masks[file] = path
    return masks


def _explicit_splits(root: Path, files: list[str], rows: dict[str, Row]) -> tuple[list[str], str]:
    by_row = [rows[file].split for file in files]
    parts = [PurePosixPath(file).parts for file in files]
    start = int(all(part[0].lower() == "images" for part in parts))
    by_folder = [SPLITS.get(part[start].lower(), "") if len(part) > start + 1 else "" for part in parts]
    for splits, how in ((by_row, "as its split column or folder says"), (by_folder, "by folder")):
        if all(splits) and {"train", "val"} <= set(splits):
            return splits, how
    if any(by_row):
        raise UserError(f"{root} has photos of the split {by_row[0]!r} only, need train and val: name both")
    return [], ""


def _summarise(content: PhotoFolder, read: str, split: str) -> str:
    tags, splits, masked = content.labels, content.splits, content.masks.keys() & set(content.files)
    trained = tags[np.array(splits) == "train"].any(0)
    seen = dict(zip(content.class_names, trained.tolist(), strict=True))
    named = [name for name in seen if name != UNUSED]
    untrained = [name for name in named if not seen[name]]
    return (
        f"{content.root}: {read}; {len(tags)} photos, {(~tags.any(1)).sum()} of background only; "
        f"{len(named)} classes: {', '.join(named[:8])}{', …' * (len(named) > 8)}; "
        f"{splits.count('train')} train and {splits.count('val')} val ({split}); "
        + (f"{len(masked)} masks" if masked else "no masks, so no mIoU")
        + (f"; no training photo of {', '.join(untrained[:3])}" if untrained else "")
    )


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
            raise UserError(f"data.max_side is {self.max_side}, need pixels or null: try 640")
        self._content = read_folder(
            self.root, self.labels, self.separator, self.val_fraction, self.split_seed, self.ignore_unlisted
        )
        self.class_names = self._content.class_names
        self.has_masks = bool(self._content.masks)

    def prepare_data(self) -> None:
        """Say what was found and how it was read."""
        say("data", self._content.summary)

    def make_set(self, split: str) -> TaggedFolder:
        """The photos of a split with their tags and, for ``val``, masks if there are any."""
        return TaggedFolder(self._content, split, self.has_masks and split == "val", self.max_side)
