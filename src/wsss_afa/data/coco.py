"""MS COCO 2014 or 2017.

Tags are the categories of all of an image's annotations, crowds included: a crowd of persons shows persons.
Images without any annotation are left out (82 081 and 40 137 remain in 2014). Masks lay larger objects
first, so that the smaller lies on top; a crowd's region takes part in that order and is ignored (255).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.data.images import encode_png, read_image, read_mask, require_files
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.types import IGNORE_INDEX, Sample

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 foreground classes in order of category id; mask value c + 1 is ``COCO_CLASSES[c]``."""
_FOR_TAGS = ("images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id")
_FOR_MASKS = (*_FOR_TAGS, "height", "width", "iscrowd", "segmentation", "counts", "size")
Region = tuple[int, Any]  # mask value, 255 for a crowd; polygons (x, y, …) in pixels, or a run length


class COCO:
    """Annotated images of one split with their tags and, for evaluation, masks.

    Masks are rasterised when first asked for and kept as PNG under ``cache_dir``, in a folder named after the
    content of the annotation file; the data folder is never written to.

    Args:
        root: The folder with ``annotations/instances_{split}{year}.json`` and ``{split}{year}/*.jpg`` (or
            ``images/{split}{year}/*.jpg``).
        split: ``train`` or ``val``.
        year: 2014 or 2017; None takes what is there, 2014 first.
        with_mask: Whether samples carry the mask.
        cache_dir: Where masks are kept; None is ``~/.cache/wsss_afa``.

    Raises:
        UserError: Annotations or images are missing, or the categories are not COCO's.
    """

    class_names = COCO_CLASSES

    def __init__(
        self,
        root: str | Path, split: str, year: int | None = None, with_mask: bool = False,
        cache_dir: str | Path | None = None,
    ) -> None:  # fmt: skip
        path, self._folder = _locate(Path(root).expanduser(), split, year)
        content = _parse(path, _FOR_MASKS if with_mask else _FOR_TAGS)
        classes = _classes(content["categories"], path)
        annotated = {item["image_id"] for item in content["annotations"]}
        images = [image for image in content["images"] if image["id"] in annotated]
        rows = {image["id"]: row for row, image in enumerate(images)}
        self._files = [image["file_name"] for image in images]
        require_files(self._folder, self._files, path.stem)
        self.labels = np.zeros((len(images), len(classes)), bool)
        for item in content["annotations"]:
            self.labels[rows[item["image_id"]], classes[item["category_id"]]] = True
        self.summary = f"{root}: {len(images)} annotated images of {len(content['images'])} in {path}"
        self._regions: list[list[Region]] | None = None
        if with_mask:
            self._regions = [[] for _ in images]
            for item in content["annotations"]:
                label = IGNORE_INDEX if item.get("iscrowd") else classes[item["category_id"]] + 1
                self._regions[rows[item["image_id"]]].append((label, item["segmentation"]))
            self._sizes = [(image["height"], image["width"]) for image in images]
            with path.open("rb") as file:
                fingerprint = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            self._cache = Path(cache_dir or "~/.cache/wsss_afa").expanduser() / fingerprint

    @property
    def names(self) -> list[str]:
        """The images' names, in order."""
        return [Path(file).stem for file in self._files]

    @property
    def paths(self) -> list[Path]:
        """The image files, in order."""
        return [self._folder / file for file in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        file_name = self._files[index]
        image = read_image(self._folder / file_name)
        label = self.labels[index].astype(np.float32)
        sample = Sample(image=image, class_label=label, name=Path(file_name).stem)
        if self._regions is not None:
            if image.shape[:2] != self._sizes[index]:
                problem = f"is {image.shape[:2]} pixels, its annotation says {self._sizes[index]}"
                raise UserError(f"{self._folder / file_name} {problem}: copy the original image")
            path = self._cache / f"{sample['name']}.png"
            if not path.exists():
                _keep(path, _rasterize(self._regions[index], *self._sizes[index]))
            sample["mask"] = read_mask(path, image.shape[:2])
        return sample


def _rasterize(regions: list[Region], height: int, width: int) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    layers = [(_run_length(segmentation, height, width), label) for label, segmentation in regions]
    with warnings.catch_warnings():  # under NumPy 2 pycocotools calls what NumPy deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        for run_length, label in sorted(layers, key=lambda layer: -int(rle_tools.area(layer[0]))):
            mask[rle_tools.decode(run_length).astype(bool)] = label
    return mask


def _run_length(segmentation: Any, height: int, width: int) -> Any:
    if isinstance(segmentation, list):
        polygons = [polygon.tolist() for polygon in segmentation]
        if not all(np.abs(polygon).max(initial=0) <= 2 * max(height, width) for polygon in segmentation):
            raise UserError(f"an outline leaves its image of {height}×{width} pixels by far: mend the file")
        return rle_tools.merge(rle_tools.frPyObjects(polygons, height, width))
    size, counts = list(segmentation["size"]), segmentation["counts"]
    if size != [height, width]:
        raise UserError(f"a region of {size} pixels is in an image of {[height, width]}: mend the file")
    if isinstance(counts, str):
        return segmentation
    return rle_tools.frPyObjects({"counts": counts.tolist(), "size": size}, height, width)


def _locate(root: Path, split: str, year: int | None) -> tuple[Path, Path]:
    for each in (year,) if year else (2014, 2017):
        name = f"{split}{each}"
        annotations = root / "annotations" / f"instances_{name}.json"
        for folder in (root / name, root / "images" / name):
            if annotations.is_file() and folder.is_dir():
                return annotations, folder
    wanted = f"{split}{year or '2014 or 2017'}"
    need = f"need annotations/instances_{split}YEAR.json and {split}YEAR/*.jpg"
    raise UserError(f"data.root={root} has no {wanted}, {need}: set data.root to the folder of both")


def _parse(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    def slim(item: dict[str, Any]) -> dict[str, Any]:
        kept = {key: item[key] for key in keys if key in item}
        if isinstance(kept.get("segmentation"), list):
            kept["segmentation"] = [np.array(polygon) for polygon in kept["segmentation"]]
        if isinstance(kept.get("counts"), list):
            kept["counts"] = np.array(kept["counts"])
        return kept

    try:
        with path.open(encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file, object_hook=slim)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): copy it anew") from error
    absent = [key for key in ("images", "annotations", "categories") if key not in content]
    if absent:
        raise UserError(f"{path} has no {', '.join(absent)}, need COCO's instances file: copy it anew")
    return content


def _classes(categories: list[dict[str, Any]], path: Path) -> dict[int, int]:
    ordered = sorted(categories, key=lambda category: category["id"])
    if tuple(category["name"] for category in ordered) != COCO_CLASSES:
        raise UserError(f"{path} has {len(ordered)} categories, need COCO's own 80: copy the original file")
    return {category["id"]: index for index, category in enumerate(ordered)}


def read_category_ids(path: Path) -> dict[str, int]:
    """COCO's ids, of 1 to 90, by class name in order of id; a UserError says that the file is not COCO's."""
    content = _parse(path, ("images", "annotations", "categories", "id", "name"))
    return {COCO_CLASSES[index]: key for key, index in _classes(content["categories"], path).items()}


def _keep(path: Path, mask: NDArray[np.uint8]) -> None:
    try:
        write_whole(path, encode_png(mask))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): set data.cache_dir elsewhere") from error


@dataclass(eq=False, repr=False)
class COCODataModule(TaggedDataModule):
    """MS COCO, 2014 or 2017.

    Settings that are not named below are those of ``TaggedDataModule``.

    Args:
        root: The folder with ``annotations`` and the image folders.
        year: 2014 or 2017; None takes what is there, 2014 first.
        cache_dir: Where rasterised masks are kept; None is ``~/.cache/wsss_afa``.

    Raises:
        UserError: A value is out of its range; from ``setup``, files are missing.
    """

    root: str
    year: int | None = None
    cache_dir: str | None = None

    class_names = COCO_CLASSES

    def make_set(self, split: str) -> COCO:
        """The annotated images of a split with their tags and, for ``val``, masks."""
        return COCO(self.root, split, self.year, with_mask=split == "val", cache_dir=self.cache_dir)
