"""Labels in the form of YOLO's segmentation: a text file for each image, a line for each polygon."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.inference.formats.polygons import polygons


def write_yolo(out: Path, images: Sequence[Labelled], class_names: Sequence[str]) -> Path:
    """Write ``yolo/data.yaml`` and ``yolo/labels/train/NAME.txt``, for images in ``yolo/images/train``.

    A UserError says that two images differ in nothing but their ending.
    """
    root, written = out / "yolo", dict[str, str]()
    for image in images:
        text = "".join(f"{line}\n" for line in _lines(image.read(), len(class_names)))
        name = PurePosixPath(image.file).with_suffix(".txt").as_posix()
        if (other := written.setdefault(name, image.file)) != image.file:
            raise UserError(f"format=yolo: {other} and {image.file} have one label file: rename one of them")
        write_whole(root / "labels" / "train" / name, text)
    names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(class_names))
    write_whole(root / "data.yaml", f"train: images/train\nval: images/train\nnames:\n{names}")
    return root / "data.yaml"


def _lines(label: NDArray[np.uint8], count: int) -> Iterator[str]:
    """The class's number from 0 and the polygon's corners, in shares of width and height."""
    size = label.shape[::-1]
    for value in np.unique(label[(label > 0) & (label <= count)]).tolist():
        for polygon in polygons(label == value):
            yield " ".join([str(value - 1), *(f"{share:.7g}" for share in (polygon / size).ravel())])
