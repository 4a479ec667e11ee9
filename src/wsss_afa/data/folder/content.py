"""Any folder of tagged photos: what is in it, how it was read, and which part validates.

Tags come from one tag file in the folder (``tags.py`` has its forms), from one in each of its sub-folders
``train`` and ``val``, from label files of YOLO, or else from folders: a sub-folder for each class, and
``background`` for photos without any. Photos may lie in any depth. A folder ``masks`` beside them holds the
truth for evaluation: for each photo a palette or grey PNG of its size and name; background is 0, class c is
c + 1, ignored pixels are 255. ``classes.txt``, one name a line, settles which classes there are, and their
order. Masks may lie elsewhere, if ``masks`` says where.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.folder.mask_folders import refuse_masks
from wsss_afa.data.folder.photos import (
    bare,
    class_folders,
    find_photo,
    find_photos,
    group_by_name,
    listed_splits,
    match_rows,
    read_tables,
    walk_images,
)
from wsss_afa.data.folder.records import find_classes, read_classes
from wsss_afa.data.folder.split import stratified_split
from wsss_afa.data.folder.splits import folder_splits, split_of
from wsss_afa.data.folder.tags import Row, Table, clean
from wsss_afa.data.folder.yolo import read_yolo
from wsss_afa.data.images import all_of, read_image, read_mask, shrink
from wsss_afa.data.names import look, told_apart
from wsss_afa.errors import UserError, say
from wsss_afa.types import IGNORE_INDEX, MAX_CLASSES, Sample


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
    doubts: tuple[str, ...] = ()  # what may be meant in another way, in a line each


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
        self.doubts = content.doubts
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
            values = np.unique(mask)
            if label.any() and values[-1] == IGNORE_INDEX and set(values) <= {0, IGNORE_INDEX}:
                tags = [f"{1 + i} for {self.class_names[i]}" for i in np.flatnonzero(label)[:3]]
                found, need = " and ".join(map(str, values)), " and ".join(tags)
                raise UserError(f"{path} has the labels {found}, need {need}: change it")
            sample["mask"] = shrink(mask, self._max_side, nearest=True)
        return sample


def read_folder(
    root: str | Path,
    labels: str | None = None,
    separator: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    ignore_unlisted: bool = False,
    masks: str | None = None,
) -> PhotoFolder:
    """Find the photos of a folder, their tags, masks and splits, without opening an image.

    Photos are split as the tag file's column ``split`` says, or as folders with names like ``train``, ``val``
    and ``test`` say. Where no photo is of ``val``, some of ``train`` are chosen by iterative stratification,
    of those with a mask if there are masks. What is of ``test`` takes part in nothing.

    ``FolderDataModule`` explains the arguments; ``seed`` is its ``split_seed``.

    Raises:
        UserError: The folder cannot be read, or not without guessing.
    """
    root = Path(root).expanduser()
    photos = find_photos(root)
    listed = clean(read_classes(find_classes(root)))
    table = read_tables(root, labels, separator, listed) or read_yolo(root, photos)
    if table is None or not ignore_unlisted:
        refuse_masks(root, photos)
    table = table or class_folders(root, photos)
    left_out = ignore_unlisted or not table.covers
    rows = match_rows(root, photos, table, left_out)
    files = [file for file in photos if file in rows]
    names = _class_names(root, table, listed)
    tags = np.array([[name in rows[file].tags for name in names] for file in files], bool)
    tags = tags.reshape(len(files), len(names))
    truth = _find_masks(root, photos, masks)
    splits, how = _known_splits(root, files, [rows[file] for file in files], listed_splits(root, photos))
    _check_contrast(root, names, tags[np.array(splits) != "test"])
    if "val" not in splits:
        own = np.flatnonzero(np.array(splits) == "train")
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}, need a share in (0, 1): try 0.1")
        if len(own) < 2:
            raise UserError(f"{root} has {len(own)} photo, need two, to train and to validate: add some")
        candidates = np.array([files[i] in truth for i in own]) if truth else None
        validates = stratified_split(tags[own], val_fraction, seed, candidates)
        for i in own[validates].tolist():
            splits[i] = "val"
        how += f"stratified, seed {seed}"
    content = PhotoFolder(root, names, files, tags, splits, truth, "", table.doubts)
    return replace(content, summary=_summarise(content, table.how, how))


def _class_names(root: Path, table: Table, listed: tuple[str, ...]) -> tuple[str, ...]:
    used = {tag: row.where for row in reversed(table.rows) for tag in row.tags}
    names = listed or table.class_names or tuple(sorted(used))
    unknown = sorted(used.keys() - set(names))
    if unknown:
        problem = f"{used[unknown[0]]} has the tag {unknown[0]!r}, which is not in {root / 'classes.txt'}"
        raise UserError(f"{problem}: mend either")
    seen = {look(name): name for name in reversed(names)}
    for name in names:
        if (other := seen[look(name)]) != name:
            raise UserError(f"{root} has the classes {told_apart(other, name)}: spell them alike")
    if len(names) > MAX_CLASSES:
        problem = f"{root} has {len(names)} classes, need {MAX_CLASSES} at most, for labels are of 8 bits"
        raise UserError(f"{problem}: merge some, or list fewer in classes.txt and leave the others' tags out")
    return names


def _check_contrast(root: Path, names: tuple[str, ...], tags: NDArray[np.bool_]) -> None:
    shown = np.flatnonzero(tags.any(0))
    if not len(shown):
        raise UserError(f"{root} has {len(tags)} photos without any tag, need some: fill the tag file")
    if len(shown) == 1 and tags.any(1).all():
        problem = f"has {len(tags)} photos, all of the class {names[shown[0]]!r}, which teach nothing"
        raise UserError(f"{root} {problem}: add photos without it, in a folder `background` or without tags")


def _find_masks(root: Path, photos: list[str], given: str | None) -> dict[str, Path]:
    folder = root / "masks" if given is None else Path(given).expanduser()
    if not folder.is_dir() and given is None:
        return {}
    if not folder.is_dir():
        raise UserError(f"data.masks={given} is no folder, need one of PNGs: mend the path")
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


def _known_splits(
    root: Path, files: list[str], rows: list[Row], lists: dict[str, str]
) -> tuple[list[str], str]:
    """The splits that rows, lists or folders name, all train where none does, and how they were read."""
    stated, how = [row.split for row in rows], "by column"
    if lists:
        if other := next((row for row, file in zip(rows, files, strict=True) if file not in lists), None):
            raise UserError(f"{root} has {other.file} in none of its lists of a split: add it to one")
        contrary = [row for row, file in zip(rows, files, strict=True) if row.split not in ("", lists[file])]
        if contrary:
            problem = (
                f"{contrary[0].where} says {contrary[0].split}, and another split's list names the photo"
            )
            raise UserError(f"{problem}: change either")
        stated, how = [lists[file] for file in files], "by lists"
    if all(stated):
        _refuse_contrary(root, files, stated)
    else:
        stated, _, how = folder_splits(root, files)
    if not all(stated):
        return ["train"] * len(files), ""
    if "train" not in stated:
        found = " and ".join(sorted(set(stated)))
        raise UserError(f"{root} has photos of the split {found} only, need some of train: name it so")
    return stated, how + ("" if "val" in stated else "; val of train's, ")


def _refuse_contrary(root: Path, files: list[str], stated: list[str]) -> None:
    """Refuse to train or validate on what lies in a folder of tests, whatever a column says."""
    for file, split in zip(files, stated, strict=True):
        if split != "test" and "test" in map(split_of, PurePosixPath(file).parts[:-1]):
            raise UserError(
                f"{root / file} is of the split {split} and in a folder of tests: move or rename it"
            )


def _summarise(content: PhotoFolder, read: str, split: str) -> str:
    tags, splits, masked = content.labels, content.splits, content.masks.keys() & set(content.files)
    trained = tags[np.array(splits) == "train"].any(0)
    seen = dict(zip(content.class_names, trained.tolist(), strict=True))
    named, tests = content.class_names, splits.count("test")
    untrained = [name for name in named if not seen[name]]
    return (
        f"{content.root}: {read}; {len(tags)} photos, {(~tags.any(1)).sum()} of background only; "
        f"{len(named)} classes: {', '.join(named[:8])}{', …' * (len(named) > 8)}; "
        f"{splits.count('train')} train and {splits.count('val')} val ({split}); "
        + (f"{tests} test, which take part in nothing; " if tests else "")
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
        masks: Folder of the masks; None is ``masks`` in the folder.

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
    masks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side is not None and self.max_side < 1:
            raise UserError(f"data.max_side is {self.max_side}, need pixels or null: try 640")
        self._content = read_folder(
            self.root, self.labels, self.separator, self.val_fraction, self.split_seed, self.ignore_unlisted,
            self.masks,
        )  # fmt: skip
        self.class_names = self._content.class_names
        self.has_masks = bool(self._content.masks)

    def prepare_data(self) -> None:
        """Say what was found and how it was read."""
        say("data", self._content.summary)
        for doubt in self._content.doubts:
            say("warning", doubt)

    def make_set(self, split: str) -> TaggedFolder:
        """The photos of a split with their tags and, for ``val``, masks if there are any."""
        return TaggedFolder(self._content, split, self.has_masks and split == "val", self.max_side)
