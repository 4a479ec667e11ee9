"""Labels in COCO's form: a run-length coded region for each class that an image shows.

Category ids are label values, 1 to C. Ignored pixels are a region of their own, of category 255 and marked as
a crowd, which COCO's tools leave out; what no region covers is background. So the labels can be had back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.types import IGNORE_INDEX


def write_coco(out: Path, images: Sequence[Labelled], class_names: Sequence[str]) -> Path:
    """Write ``coco.json``."""
    listed, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for image_id, image in enumerate(images, 1):
        label = image.read()
        height, width = label.shape
        listed.append({"id": image_id, "file_name": image.file, "height": height, "width": width})
        for region in regions(label):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **region})
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, 1)]
    if any(each["iscrowd"] for each in annotations):
        categories.append({"id": IGNORE_INDEX, "name": "ignored"})
    content = {"images": listed, "annotations": annotations, "categories": categories}
    write_whole(out / "coco.json", json.dumps(content, ensure_ascii=False) + "\n")
    return out / "coco.json"


def regions(label: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """COCO's annotations of a label (H, W) without their ids, by label value."""
    found = []
    for value in np.unique(label[label > 0]).tolist():
        run_length = rle_tools.encode(np.asfortranarray(label == value, np.uint8))
        found.append({
            "category_id": value,
            "iscrowd": int(value == IGNORE_INDEX),
            "area": int(rle_tools.area(run_length)),
            "bbox": rle_tools.toBbox(run_length).tolist(),
            "segmentation": {"size": run_length["size"], "counts": run_length["counts"].decode()},
        })  # fmt: skip
    return found
