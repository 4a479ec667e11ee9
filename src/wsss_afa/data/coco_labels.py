"""Labels as one JSON file in COCO's form: a run-length coded region for each class that an image shows.

Category ids are label values, 1 to C. Ignored pixels are a region of their own, of category 255 and marked as
a crowd, which COCO's tools leave out; what no region covers is background. So the labels can be had back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from wsss_afa.data.images import open_image, read_mask
from wsss_afa.data.label_folder import LabelFolder
from wsss_afa.files import write_whole
from wsss_afa.types import IGNORE_INDEX

COCO_FILE = "labels.json"  # in the folder of the labels


def write_coco(folder: LabelFolder, class_names: Sequence[str]) -> None:
    """Write all labels of a folder, of C foreground classes in order, to ``labels.json`` in it."""
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for image_id, name in enumerate(folder.names(), 1):
        with open_image(folder.path(name)) as image:
            width, height = image.size
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for region in regions(read_mask(folder.path(name), (height, width))):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **region})
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, 1)]
    categories.append({"id": IGNORE_INDEX, "name": "ignored"})
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(folder.root / COCO_FILE, json.dumps(content) + "\n")


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
