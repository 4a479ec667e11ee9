"""The photos of a folder and labels of any settings for them: what the pages show, apart from any page."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsss_afa.data.folder.content import FolderDataModule, TaggedFolder
from wsss_afa.data.images import read_image
from wsss_afa.inference.label_source import SEGMENTATION, LabelSource, merge_labels
from wsss_afa.inference.predictor import best_label
from wsss_afa.methods.base import Method
from wsss_afa.ops.metrics import class_iou, count_pairs
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import Batch

Pixels = NDArray[np.uint8]
_KEPT = 64  # labels of the folder's photos that are remembered
_SCORES = tuple(round(i / 20, 2) for i in range(21))  # those of the sliders
_SWEPT = ("cam", "par")
"""Sources whose labels of all these scores cost little more than one."""


class Settings(NamedTuple):
    """How labels are made, as ``pseudo_labels`` has it."""

    source: str
    low: float
    """Background score in [0, 1]."""
    high: float
    """Pixels between both scores are ignored; the label has none unless it is above ``low``."""
    crf: bool


class Photo(NamedTuple):
    """A photo of the folder."""

    name: str
    file: str
    """Its path from the folder on."""
    path: Path
    tags: tuple[int, ...]
    """Foreground classes, from 0."""
    split: str


class Labeller:
    """A trained method and a folder's photos, in the size that the method knows.

    Every call may come from a thread of its own; the network works for one at a time.

    Args:
        method: In evaluation mode.
        data: Photos with their tags, normalised as the method knows them.
        protocol: Of the segmentation, without CRF.
        crf: The same with the CRF that follows labels if they are asked for with it.
    """

    def __init__(
        self, method: Method, data: FolderDataModule, protocol: MultiScaleSegmentation,
        crf: MultiScaleSegmentation,
    ):  # fmt: skip
        self.method, self.data, self.protocols = method, data, (protocol, crf)
        self.class_names = data.class_names
        self.sources = (*method.sources, SEGMENTATION)
        data.has_masks = False  # none is opened, and none need be there
        self.photos = [*_photos(data.make_set("train"), "train"), *_photos(data.make_set("val"), "val")]
        self.label, self._sweep = lru_cache(_KEPT)(self._label), lru_cache(_KEPT // 4)(self._labels)
        self._lock = threading.Lock()

    def has_background(self, source: str) -> bool:
        """Whether labels of a source depend on a background score."""
        return self._source(source).has_background

    def default(self) -> Settings:
        """The first settings: the method's most refined maps, or its segmentation where it has none."""
        source = next((each for each in ("par", *self.sources) if each in self.sources), SEGMENTATION)
        low = self._source(source).backgrounds(None)[0]
        return Settings(source, low, low, False)

    def read(self, index: int) -> Pixels:
        """The pixels (H, W, 3) of a photo; a `UserError` says that they cannot be read."""
        return read_image(self.photos[index].path, upright=True, max_side=self.data.max_side)

    def _label(self, index: int, settings: Settings) -> Pixels:
        """The label (H, W) of a photo; other scores of the same photo then follow at once."""
        source, low, high, crf = settings
        if crf or source not in _SWEPT or not {low, high} <= {*_SCORES}:
            return self.label_of(self.read(index), self.photos[index].tags, settings)
        found = dict(zip(_SCORES, self._sweep(index, source), strict=True))
        return merge_labels([found[score] for score in sorted({low, high})]).numpy()

    @torch.inference_mode()
    def _labels(self, index: int, source: str) -> list[Tensor]:
        """The labels (H, W) uint8 of a photo for all scores."""
        with self._lock:
            batch = self._batch(self.read(index), self.photos[index].tags)
            return [label[0].byte().cpu() for label in self._source(source)(batch, _SCORES)]

    @torch.inference_mode()
    def label_of(self, image: Pixels, tags: Sequence[int], settings: Settings) -> Pixels:
        """Label (H, W) of an image (H, W, 3) that has these classes, from 0, and no other."""
        source = self._source(settings.source, settings.crf)
        scores = [settings.low, settings.high] if settings.high > settings.low else [settings.low]
        with self._lock:
            found = merge_labels(source(self._batch(image, tags), scores))
        return found[0].cpu().numpy().astype(np.uint8)

    @torch.inference_mode()
    def scores(self, image: Pixels) -> NDArray[np.float32]:
        """Whether an image (H, W, 3) has each class at all, (C,) in [0, 1], as the classifier sees it."""
        with self._lock:
            logits = self.method.classify(self._batch(image, ())["image"])
        return logits[0].sigmoid().cpu().numpy()

    @torch.inference_mode()
    def heat_maps(self, image: Pixels, classes: Sequence[int]) -> NDArray[np.float32]:
        """Activation maps (n, H, W) in [0, 1] of some classes, from 0; none of a method that has no maps."""
        if self.method.cam is None or not classes:
            return np.zeros((0, *image.shape[:2]), np.float32)
        with self._lock:
            channels = torch.tensor([list(classes)], device=self.method.device)
            return self.method.heat_maps(self._batch(image, ())["image"], channels)[0].cpu().numpy()

    @torch.inference_mode()
    def sureness(self, image: Pixels, label: Pixels) -> float:
        """How far the segmentation, which is not told the tags, agrees with an image's label.

        It is the mean IoU over the label's classes, background among them, in [0, 1].
        """
        with self._lock:
            probabilities = self.protocols[0].probabilities(self.method, self._batch(image, ())["image"])
        guess = probabilities[0].max(0).indices.cpu()
        pairs = count_pairs(guess, torch.from_numpy(label).long(), len(self.class_names) + 1)
        return float(class_iou(pairs).nanmean().nan_to_num())

    def _source(self, name: str, crf: bool = False) -> LabelSource:
        return LabelSource(self.method, name, self.protocols[crf])

    def _batch(self, image: Pixels, tags: Sequence[int]) -> Batch:
        pixels, box = self.data.eval_transform(image)
        label = torch.zeros(1, len(self.class_names), device=self.method.device)
        label[0, list(tags)] = 1
        device = self.method.device
        return {
            "image": pixels[None].to(device), "class_label": label, "valid_box": box[None].to(device),
            "name": [""],
        }  # fmt: skip


def enlarge(label: Pixels, size: Sequence[int]) -> Pixels:
    """A label (h, w) in a larger size (H, W), with borders that run smoothly between its pixels."""
    values = [0, *(value for value in np.unique(label).tolist() if value)]
    maps: Tensor = torch.from_numpy(np.stack([label == value for value in values])).float()
    return best_label(maps, values, size)


def _photos(images: TaggedFolder, split: str) -> list[Photo]:
    rows = zip(images.names, images.files, images.paths, images.labels, strict=True)
    return [
        Photo(name, file, path, tuple(np.flatnonzero(tags).tolist()), split)
        for name, file, path, tags in rows
    ]
