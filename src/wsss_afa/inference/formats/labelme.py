"""Labels in LabelMe's form: a JSON file for each image, with a shape for each polygon."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.inference.formats.polygons import polygons


def write_labelme(out: Path, images: Sequence[Labelled], class_names: Sequence[str]) -> Path:
    """Write ``labelme/NAME.json``, and ``labelme/labels.txt`` with the names of all classes."""
    root = out / "labelme"
    for image in images:
        path, label = root / f"{image.name}.json", image.read()
        source = (
            os.path.relpath(image.folder / image.file, path.absolute().parent) if image.folder else image.file
        )
        content = {
            "version": "5.5.0", "flags": {}, "shapes": _shapes(label, class_names),
            "imagePath": Path(source).as_posix(), "imageData": None,
            "imageHeight": label.shape[0], "imageWidth": label.shape[1],
        }  # fmt: skip
        write_whole(path, json.dumps(content, ensure_ascii=False) + "\n")
    write_whole(root / "labels.txt", "".join(f"{name}\n" for name in class_names))
    return root


def _shapes(label: NDArray[np.uint8], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The polygons of all classes; those of one class are a group."""
    return [
        {
            "label": name, "points": polygon.tolist(), "group_id": value, "description": "",
            "shape_type": "polygon", "flags": {}, "mask": None,
        }
        for value, name in enumerate(class_names, 1)
        for polygon in polygons(label == value)
    ]  # fmt: skip
