"""A folder of labels: a PNG for each image, under the image's name, and a manifest of what made them.

``manifest.json`` holds the settings that the labels were made with; the folder takes labels of the same
settings alone. A folder without a manifest, such as VOC's ``SegmentationClassAug``, can be trained on but not
written to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.images import read_mask
from wsss_afa.data.sampler import SampleSet
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.types import Sample

MANIFEST = "manifest.json"  # beside the labels: the settings that they were made with


class LabelFolder:
    """A folder, made if there is none, to which labels of one setting, in plain containers, are written.

    A UserError says that it has labels of other settings, or files of another kind.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root).expanduser()
        self.root.mkdir(parents=True, exist_ok=True)
        if any(path.suffix != ".partial" for path in self.root.iterdir()):
            _check_settings(self.root, json.loads(json.dumps(settings)))
        else:
            text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
            write_whole(self.root / MANIFEST, text)

    def names(self) -> list[str]:
        """Of the images that have a label, sorted."""
        return [path.relative_to(self.root).with_suffix("").as_posix() for path in find_labels(self.root)]

    def path(self, name: str) -> Path:
        """Where the label of an image is or will be, as ``label_path`` says."""
        return label_path(self.root, name)


class LabelledImages:
    """A data set whose samples carry the labels of a folder as their masks.

    A mask of the images' own is not looked at; only labels of images that are asked for are opened. A
    UserError says that there is no such folder, or that its labels are of other classes or fewer than the
    images; from an item, that its label is missing, of another size or no label. A label may have the size of
    the image before that was reduced.
    """

    def __init__(self, images: SampleSet, folder: str | Path) -> None:
        self.images, self.folder = images, Path(folder).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"labels={folder}: no such folder; write it with wsss_afa.pseudo_labels")
        if (self.folder / MANIFEST).exists():
            found = _read_manifest(self.folder).get("class_names")
            if found != list(images.class_names):
                classes = f"the classes {found}, the data has {list(images.class_names)}"
                raise UserError(f"labels={folder} has labels of {classes}: use labels of this data")
        count = len(find_labels(self.folder))
        if count < len(images):
            need = f"need one for each of the {len(images)} training images"
            raise UserError(f"labels={folder} has {count} PNGs, {need}: write the rest")
        self.class_names = images.class_names

    @property
    def names(self) -> list[str]:
        """The images' names, in order, if they have any."""
        return list(getattr(self.images, "names", ()))

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Tags of all images, (n, C)."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = self.images[index]
        path = label_path(self.folder, sample["name"])
        size, count = sample["image"].shape[:2], len(self.class_names)
        sample["mask"] = read_mask(path, size, count, reduced=True)
        return sample


def find_labels(folder: Path) -> list[Path]:
    """The label files of a folder, at any depth, sorted."""
    return sorted(folder.rglob("*.png"))


def label_path(folder: Path, name: str) -> Path:
    """Where an image's label lies; a UserError says that the name leads out of the folder."""
    path = folder / f"{name}.png"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the image name {name!r} leads out of {folder}: rename the image")
    return path


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest ({error}): choose another folder") from error


def _check_settings(root: Path, wanted: dict[str, Any]) -> None:
    if not (root / MANIFEST).exists():
        raise UserError(f"out={root} has files but no {MANIFEST}, need a folder of its own: choose another")
    found = _read_manifest(root)
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            problem = f"labels of {key}={found.get(key)}, this run makes {key}={wanted.get(key)}"
            raise UserError(f"out={root} has {problem}: choose another folder")
