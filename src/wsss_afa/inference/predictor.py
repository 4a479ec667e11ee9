"""From an image of any kind and size to a label, class scores and heat maps.

    prediction = Predictor.from_checkpoint("best.ckpt")("photo.jpg")
    prediction.save("predictions")

G is the number of classes asked for, background included: K, or 1 + the number of tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsss_afa.data.images import read_image, require_file, shrink, to_rgb
from wsss_afa.errors import UserError, printable
from wsss_afa.inference.hub import find_weights
from wsss_afa.inference.prediction import Prediction, class_index, resize_maps
from wsss_afa.inference.tiling import Grid, TiledNet
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import load
from wsss_afa.ops.multi_scale import MultiScaleSegmentation

MAX_PIXELS = 178_956_970
"""Of an image; Pillow itself opens none that is larger."""
LONG_SIDE = 2048
"""Pixels that larger images are reduced to where training says nothing."""
ImageLike = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """How large images are handled; all in pixels. A UserError refuses values out of range."""

    long_side: int | None = LONG_SIDE
    """An image whose longer side exceeds it is reduced to it, and the result enlarged again; None never."""
    tile: int | None = 1024
    """A longer image (after ``long_side``) is segmented in tiles of this side; class scores and heat maps are
    made of the whole image, reduced to it. None passes every image in one piece."""
    overlap: int = 256
    """Least overlap of neighbouring tiles, below ``tile``."""
    max_pixels: int = 100_000_000
    """A file with more is refused before it is decoded."""

    def __post_init__(self) -> None:
        _require_pixels("long_side", self.long_side, 1, optional=True)
        _require_pixels("tile", self.tile, 1, optional=True)
        _require_pixels("overlap", self.overlap, 0, None if self.tile is None else self.tile - 1)
        _require_pixels("max_pixels", self.max_pixels, 1, MAX_PIXELS)


def trained_side(method: Method) -> int:
    """Pixels that a larger image's longer side is best reduced to: as in training, 2048 where nothing was."""
    return int(method.recipe.get("max_side") or LONG_SIDE)


def _require_pixels(name: str, value: Any, low: int, high: int | None = None, optional: bool = False) -> None:
    inside = type(value) is int and low <= value and (high is None or value <= high)
    if not inside and not (optional and value is None):
        need = f"{low} or more" if high is None else f"{low} to {high}"
        raise UserError(f"{name}={value}, need {need} pixels{' or null' * optional}: change it")


class Predictor:
    """A trained network with all that stands before and behind it. Runs in evaluation mode, in float32.

    Args:
        method: A trained method; it is moved to the device and put in evaluation mode.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` (Apple's GPU), …; ``auto`` takes a GPU if there is one.
        protocol: Scales, mirror and CRF; None is one pass at the image's size.
        sizes: How large images are handled; None takes the defaults, with the method's `trained_side`.

    Raises:
        UserError: The device is not there, or the tile is smaller than the network takes.
    """

    def __init__(
        self,
        method: Method, device: str = "auto", protocol: MultiScaleSegmentation | None = None,
        sizes: Sizes | None = None,
    ):  # fmt: skip
        self.device = find_device(device)
        self.method = method.to(self.device).eval()
        self.class_names = tuple(method.recipe["class_names"])
        self.protocol = protocol or MultiScaleSegmentation(mean=method.mean, std=method.std)
        self.protocol.to(self.device)
        self.sizes = sizes or Sizes(trained_side(method))
        reductions, self.min_side = method.backbone.reductions, method.backbone.min_side
        self.grid = Grid(reductions[0], max(reductions))
        if self.sizes.tile is not None and self.sizes.tile < self.min_side:
            raise UserError(f"tile={self.sizes.tile}, need {self.min_side} pixels or more: raise it")

    def __repr__(self) -> str:
        """The method, its classes and the device, in one line."""
        names = ", ".join(map(printable, self.class_names[:5])) + ", …" * (len(self.class_names) > 5)
        method = type(self.method).__name__
        return f"Predictor({method} of {len(self.class_names)} classes: {names}; on {self.device})"

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path, device: str = "auto", protocol: MultiScaleSegmentation | None = None,
        sizes: Sizes | None = None, trust: Sequence[str] = (),
    ) -> Predictor:  # fmt: skip
        """Rebuild a network from a checkpoint alone; ``path`` and ``trust`` are as in `methods.recipe.load`.

        A UserError says that the file is no such checkpoint, or what the class says.
        """
        return cls(load(path, trust), device, protocol, sizes)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str = "auto", protocol: MultiScaleSegmentation | None = None,
        sizes: Sizes | None = None, trust: Sequence[str] = (),
    ) -> Predictor:  # fmt: skip
        """Rebuild a network from a folder that ``export format=hf`` wrote, or from one on the hub.

        Args:
            name: Of the folder, or ``"user/name"`` on the hub; environment variables that huggingface_hub
                knows, such as ``HF_TOKEN`` and ``HF_HUB_OFFLINE``, count.
            device: As of the class, and so are ``protocol`` and ``sizes``.
            trust: As in `methods.recipe.load`.

        Raises:
            UserError: There is neither, it cannot be had, or what `from_checkpoint` says.
        """
        return cls(load(find_weights(name), trust), device, protocol, sizes)

    def __call__(self, image: ImageLike, tags: Sequence[str] | None = None) -> Prediction:
        """Predict one image.

        Args:
            image: Path of a file, which is turned upright as its EXIF orientation says; a PIL image, turned
                likewise; or RGB pixels (H, W, 3) uint8.
            tags: Names of the classes that the image may have besides background; None allows all.

        Raises:
            UserError: There is no such class, or the image cannot be read, is empty, or too large.
        """
        labels = self.choose(tags)
        name, rgb = self._read(image)
        work = shrink(rgb, self.sizes.long_side)
        view = shrink(work, self.sizes.tile)
        try:
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                logits, probabilities = self._pass(work, view, labels)
                label = best_label(probabilities, labels, rgb.shape[:2])
                scores = logits[0].sigmoid().cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            what = f"{_place(image)} needs more memory than there is"
            raise UserError(f"{what}: lower long_side or tile") from error
        if not (np.isfinite(scores).all() and probabilities.isfinite().all()):
            raise UserError(f"{_place(image)}: the network's results are not finite: use another checkpoint")
        areas = np.bincount(label.ravel(), minlength=1 + len(self.class_names)) / label.size
        order = sorted(labels[1:], key=lambda each: -areas[each])
        found = tuple(self.class_names[each - 1] for each in order if tags is not None or areas[each])
        return Prediction(
            name, rgb, label, self.class_names, scores, areas, found, labels, probabilities.cpu(),
            lambda classes: self._activate(view, classes).cpu(),
        )  # fmt: skip

    def choose(self, tags: Sequence[str] | None) -> list[int]:
        """Labels that an image with these tags may have, background first; a `UserError` for unknown ones."""
        if tags is None:
            return list(range(1 + len(self.class_names)))
        if isinstance(tags, str) or not tags:
            raise UserError(f"tags={tags!r}, need a list of class names: set null for all classes")
        return [0, *sorted({1 + class_index(tag, self.class_names) for tag in tags})]

    def _read(self, image: ImageLike) -> tuple[str, NDArray[np.uint8]]:
        if isinstance(image, str | Path):
            path = Path(image)
            require_file(path)
            return path.stem, read_image(path, upright=True, max_pixels=self.sizes.max_pixels)
        rgb = to_rgb(image, upright=True) if isinstance(image, Image.Image) else image
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            what = f"the image is {rgb.dtype} of shape {rgb.shape}"
            raise UserError(f"{what}, need uint8 RGB pixels (H, W, 3): convert it")
        return "image", rgb

    def _pass(
        self, rgb: NDArray[np.uint8], view: NDArray[np.uint8], labels: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (1, C) of the view, and probabilities (G, h, w) of the image.

        One pass gives both, but for an image that is passed in tiles, or at other sizes than its own.
        """
        image, size = self._normalise(rgb), rgb.shape[:2]
        if self.protocol.whole:
            whole: Tensor = self.protocol(self.method, image)
            return self.method.classify(self._normalise(view)), whole[0, list(labels)]
        known = None
        if view.shape == rgb.shape and size in self.protocol.sizes(size):
            logits, segments = self.method.answer(image)
            known = segments[:, list(labels)]
        else:
            logits = self.method.classify(self._normalise(view))
        net = TiledNet(self.method, self.grid, self.sizes.tile, self.sizes.overlap, labels)
        probabilities: Tensor = self.protocol(net, image, known)
        return logits, probabilities[0]

    @torch.inference_mode()
    def _activate(self, rgb: NDArray[np.uint8], classes: Sequence[int]) -> Tensor:
        channels = torch.tensor([classes], device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            return self.method.heat_maps(self._normalise(rgb), channels)[0]

    def _normalise(self, rgb: NDArray[np.uint8]) -> Tensor:
        """(1, 3, H, W)."""
        image = torch.tensor(rgb, device=self.device).permute(2, 0, 1)[None].float()
        mean, std = (image.new_tensor(each)[:, None, None] for each in (self.method.mean, self.method.std))
        return (image - mean) / std


def _place(image: ImageLike) -> str:
    return str(image) if isinstance(image, str | Path) else "image"


def find_device(name: str) -> torch.device:
    """The device of this name, ``auto`` for a GPU if there is one; a `UserError` if it is not there."""
    if name == "auto":
        apple = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else apple)
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device={name} cannot be used ({reason}): set auto, cpu, cuda or mps") from error


def best_label(probabilities: Tensor, labels: Sequence[int], size: Sequence[int]) -> NDArray[np.uint8]:
    """The most probable of the labels, background first, as (H, W) of ``size``.

    Maps (G, h, w) are enlarged class by class, which needs the memory of two.
    """
    best = resize_maps(probabilities[:1], size)[0]
    label = torch.zeros(*size, dtype=torch.uint8, device=best.device)
    for position, value in enumerate(labels[1:], 1):
        rival = resize_maps(probabilities[position : position + 1], size)[0]
        label[rival > best] = value
        best = torch.maximum(best, rival)
    return label.cpu().numpy()
