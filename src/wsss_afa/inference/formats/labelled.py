"""Images whose labels are written already, as what other forms are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsss_afa.data.images import open_image, read_mask
from wsss_afa.inference.image_files import below_one_folder


class Labelled(NamedTuple):
    """An image and its label."""

    name: str  # of the label, without an ending
    file: str  # of the image, relative to the folder of all images, with forward slashes
    folder: Path | None  # that folder; None where images are generated
    path: Path  # of the label, a PNG

    def read(self) -> NDArray[np.uint8]:
        """The label (H, W): 0 background, c + 1 class c, 255 ignored."""
        with open_image(self.path) as image:
            width, height = image.size
        return read_mask(self.path, (height, width))

    @property
    def place(self) -> str:
        """The image's path from the folder above that of all images."""
        return f"{self.folder.name}/{self.file}" if self.folder and self.folder.name else self.file


def from_names(names: Sequence[str], labels: Sequence[Path], images: Mapping[str, Path]) -> list[Labelled]:
    """Labels of images that are known by name: a path from their folder on, without the ending."""
    found = []
    for name, label in zip(names, labels, strict=True):
        path = images[name].absolute() if name in images else None
        file = name + (path.suffix if path else ".png")
        inside = path is not None and path.as_posix().endswith(f"/{file}")
        folder = Path(path.as_posix()[: -len(file)]) if path and inside else None
        found.append(Labelled(name, file, folder, label))
    return found


def from_records(records: Sequence[Mapping[str, Any]], out: Path) -> list[Labelled]:
    """Predictions as `Prediction.save` and the program describe them, without those that failed."""
    folder, files = below_one_folder([Path(record["file"]) for record in records])
    return [
        Labelled(
            record["mask"].removeprefix("masks/").removesuffix(".png"), Path(file).as_posix(), folder,
            out / record["mask"],
        )
        for record, file in zip(records, files, strict=True)
        if "mask" in record
    ]  # fmt: skip
