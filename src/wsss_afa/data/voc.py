"""PASCAL VOC 2012 with the SBD training list, or any folder in VOC's layout.

Tags are the distinct object names of an image's annotation, difficult objects included. Those of VOC's own
images come with the package (they agree with the annotations, not always with the masks); for other images
they are read from ``Annotations/{name}.xml``. In the split ``test``, whose annotations are secret, no image
has tags.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.images import absent_files, read_image, read_mask, require_files
from wsss_afa.errors import UserError
from wsss_afa.types import Sample

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 foreground classes; mask value c + 1 is ``VOC_CLASSES[c]``."""
_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
_PACKAGED = files("wsss_afa.data") / "voc2012"


class VOC:
    """Images of one split with their tags and, for evaluation, masks.

    The list is ``ImageSets/Segmentation/{split}.txt`` under the root, else the packaged list of that name.

    Args:
        root: The folder ``VOC2012`` with ``JPEGImages``.
        split: Name of a list: train, train_aug, val or test, or a file of the user's own.
        with_mask: Whether samples carry the mask, from ``SegmentationClass`` or ``SegmentationClassAug``: the
            first that has all of the split. No mask is opened otherwise.

    Raises:
        UserError: The root, the list, an image, its tags or its mask is missing.
    """

    class_names = VOC_CLASSES

    def __init__(self, root: str | Path, split: str, with_mask: bool = False) -> None:
        self.root = Path(root).expanduser()
        images = self.root / "JPEGImages"
        if not images.is_dir():
            problem = f"data.root={root} has no folder JPEGImages, need VOC2012/JPEGImages/*.jpg"
            raise UserError(f"{problem}: set data.root to the folder VOC2012 itself")
        self.names, path = _read_list(self.root, split)
        require_files(images, [f"{name}.jpg" for name in self.names], split)
        self.paths = [images / f"{name}.jpg" for name in self.names]
        self.labels = np.zeros((len(self), len(VOC_CLASSES)), bool)
        packaged, annotations = _packaged_tags(), self.root / "Annotations"
        for row, name in zip(self.labels, self.names, strict=True) if split != "test" else ():
            tags = packaged[name] if name in packaged else parse_tags(annotations / f"{name}.xml")
            row[[VOC_CLASSES.index(tag) for tag in tags]] = True
        self._masks = _find_masks(self.root, self.names, split) if with_mask else None
        masks = f"; masks of {self._masks.name}" if self._masks else ""
        self.summary = f"{root}: {len(self)} images of the list {path}{masks}"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        image, label = read_image(self.paths[index]), self.labels[index].astype(np.float32)
        sample = Sample(image=image, class_label=label, name=self.names[index])
        if self._masks is not None:
            path = self._masks / f"{sample['name']}.png"
            sample["mask"] = read_mask(path, image.shape[:2], len(VOC_CLASSES))
        return sample


def parse_tags(path: Path) -> list[str]:
    """Distinct object names of one annotation, in order of appearance; the parts of objects are none.

    A UserError refuses a file that is missing, no XML, or declares a document type and so entities.
    """
    try:
        text = path.read_text("utf-8")
        if "<!DOCTYPE" in text:
            raise ValueError("it declares a document type")
        root = ElementTree.fromstring(text)  # noqa: S314 - without a DOCTYPE there are no entities
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} gives no tags ({error}), need VOC's XML: add or mend it") from error
    names = [(element.text or "").strip() for element in root.iterfind("object/name")]
    unknown = set(names) - set(VOC_CLASSES)
    if unknown:
        raise UserError(f"{path} names {sorted(unknown)}, need VOC's 20 classes: mend the annotation")
    return list(dict.fromkeys(names))


def _read_list(root: Path, split: str) -> tuple[list[str], Traversable]:
    own, packaged = root / "ImageSets" / "Segmentation" / f"{split}.txt", _PACKAGED / f"{split}.txt"
    path = own if own.is_file() else packaged
    if not path.is_file():
        raise UserError(f"split {split!r} has no list, need {own} or one of train, train_aug, val, test")
    lines = path.read_text("utf-8").splitlines()
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]  # SBD lists give paths
    if not names:
        raise UserError(f"{path} lists 0 images, need one name per line: fill or delete it")
    return names, path


@cache
def _packaged_tags() -> dict[str, list[str]]:
    with (_PACKAGED / "tags.csv").open(encoding="utf-8") as file:
        return {row["image"]: row["tags"].split() for row in csv.DictReader(file)}


def _find_masks(root: Path, names: list[str], split: str) -> Path:
    pngs = [f"{name}.png" for name in names]
    folder = min((root / name for name in _MASK_FOLDERS), key=lambda own: len(absent_files(own, pngs)))
    require_files(folder, pngs, split)
    return folder


@dataclass(eq=False, repr=False)
class VOCDataModule(TaggedDataModule):
    """PASCAL VOC 2012, or any folder in its layout.

    Settings that are not named below are those of ``TaggedDataModule``.

    Args:
        root: The folder ``VOC2012`` with ``JPEGImages``.
        train_split: List of training images.
        val_split: List of validation images.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    root: str
    train_split: str = "train_aug"
    val_split: str = "val"

    class_names = VOC_CLASSES

    def make_set(self, split: str) -> VOC:
        """The images of ``train_split`` with their tags, or of ``val_split`` with masks too."""
        if split == "train":
            return VOC(self.root, self.train_split)
        return VOC(self.root, self.val_split, with_mask=True)
