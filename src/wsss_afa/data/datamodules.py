"""The data modules of VOC, COCO, own folders and generated scenes: what each of them opens."""

from __future__ import annotations

from collections.abc import Sequence

from wsss_afa.data.coco import COCO, COCO_CLASSES
from wsss_afa.data.datamodule import AFADataModule
from wsss_afa.data.folder import TaggedFolder, read_folder
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.data.voc import VOC, VOC_CLASSES
from wsss_afa.types import UserError


class VOCDataModule(AFADataModule):
    """PASCAL VOC 2012, or any folder in its layout.

    Settings that are not named below are those of ``AFADataModule``.

    Args:
        root: The folder ``VOC2012`` with ``JPEGImages``.
        train_split: List of training images.
        val_split: List of validation images.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        train_split: str = "train_aug",
        val_split: str = "val",
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        self.root, self.train_split, self.val_split = root, train_split, val_split

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 20 classes of VOC."""
        return VOC_CLASSES

    def make_train_set(self) -> VOC:
        """The images of ``train_split`` with their tags."""
        return VOC(self.root, self.train_split)

    def make_val_set(self) -> VOC:
        """The images of ``val_split`` with their masks."""
        return VOC(self.root, self.val_split, with_mask=True)


class COCODataModule(AFADataModule):
    """MS COCO, 2014 or 2017.

    Settings that are not named below are those of ``AFADataModule``.

    Args:
        root: The folder with ``annotations`` and the image folders.
        year: 2014 or 2017; None takes what is there, 2014 first.
        cache_dir: Where rasterised masks are kept; None is ``~/.cache/wsss_afa``.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        year: int | None = None,
        cache_dir: str | None = None,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        self.root, self.year, self.cache_dir = root, year, cache_dir

    @property
    def class_names(self) -> tuple[str, ...]:
        """The 80 classes of COCO."""
        return COCO_CLASSES

    def make_train_set(self) -> COCO:
        """The annotated training images with their tags."""
        return COCO(self.root, "train", self.year)

    def make_val_set(self) -> COCO:
        """The annotated validation images with their masks."""
        return COCO(self.root, "val", self.year, with_mask=True, cache_dir=self.cache_dir)


class FolderDataModule(AFADataModule):
    """Any folder of tagged photos, with or without masks; the folder is read at once, its images are not.

    Settings that are not named below are those of ``AFADataModule``.

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

    def __init__(
        self,
        root: str,
        labels: str | None = None,
        separator: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        ignore_unlisted: bool = False,
        max_side: int | None = None,
        batch_size: int = 8,
        crop_size: int = 512,
        num_workers: int = 0,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.5,
        seed: int = 0,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        if max_side is not None and max_side < 1:
            raise UserError(f"data.max_side is {max_side}, need pixels or null: set it to 640, for example")
        self.max_side = max_side
        self._content = read_folder(root, labels, separator, val_fraction, split_seed, ignore_unlisted)
        self.has_masks = bool(self._content.masks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the folder names."""
        return self._content.class_names

    def prepare_data(self) -> None:
        """Say what was found and how it was read."""
        print(f"data      {self._content.summary}")

    def make_train_set(self) -> TaggedFolder:
        """The training photos with their tags."""
        return TaggedFolder(self._content, "train", max_side=self.max_side)

    def make_val_set(self) -> TaggedFolder:
        """The validation photos with their tags and, if there are any, masks."""
        return TaggedFolder(self._content, "val", self.has_masks, self.max_side)


class SyntheticDataModule(AFADataModule):
    """Generated scenes of textured shapes: no files.

    Settings that are not named below are those of ``AFADataModule``.

    Args:
        image_size: Side of a scene in pixels.
        num_classes: 1 to 8 shapes.
        train_images: Scenes of the training split.
        val_images: Scenes of the validation split.
        hue_probability: Difficulty, in [0, 1]: how often an object has its class's hue.
        max_objects: Most objects in a scene.
        scene_seed: Of the scenes, apart from ``seed``: runs of other seeds see the same data.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(
        self,
        image_size: int = 96,
        num_classes: int = 6,
        train_images: int = 4000,
        val_images: int = 100,
        hue_probability: float = 1.0,
        max_objects: int = 3,
        scene_seed: int = 0,
        batch_size: int = 8,
        crop_size: int = 96,
        num_workers: int = 0,
        scale: Sequence[float] = (1.0, 1.0),
        flip: float = 0.5,
        seed: int = 0,
        balanced: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(batch_size, crop_size, num_workers, scale, flip, seed, balanced, skip_broken)
        settings = (image_size, num_classes, hue_probability, max_objects, scene_seed)
        self._scenes = {
            "train": SyntheticScenes(train_images, *settings, split="train"),
            "val": SyntheticScenes(val_images, *settings, split="val", with_mask=True),
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first ``num_classes`` shapes."""
        return self._scenes["val"].class_names

    def make_train_set(self) -> SyntheticScenes:
        """Scenes without masks."""
        return self._scenes["train"]

    def make_val_set(self) -> SyntheticScenes:
        """Other scenes, with masks."""
        return self._scenes["val"]
