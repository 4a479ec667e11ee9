"""What a network makes of one image: label, scores, maps, pictures, and the files they are written to.

G is the number of classes asked for, background included: K, or 1 + the number of tags.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsss_afa.data.images import encode_png
from wsss_afa.data.names import tidy
from wsss_afa.errors import UserError, printable
from wsss_afa.ops.images import resize
from wsss_afa.reports.visualize import add_legend, paint_heat, paint_label, save_label, save_picture

BACKGROUND = "background"
"""Name of label 0."""
_BAND = 512  # rows that are painted at once


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What the network makes of one image, at the image's own size, upright."""

    name: str
    """The file's, without its ending; ``image`` for an image in memory."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    label: NDArray[np.uint8]
    """(H, W): 0 is background, c + 1 is ``class_names[c]``."""
    class_names: tuple[str, ...]
    """C foreground classes."""
    scores: NDArray[np.float32]
    """(C,) in [0, 1]: whether the image has the class at all, by the classifier's sigmoid."""
    areas: NDArray[np.float64]
    """(K,) share of the pixels with each label; they sum to 1."""
    found: tuple[str, ...]
    """The tags, if any were given, else the classes that have a pixel; largest first."""
    _labels: Sequence[int] = field(repr=False)
    _probabilities: Tensor = field(repr=False)  # (G, h, w)
    _locate: Callable[[Sequence[int]], Tensor] = field(repr=False)
    _cams: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        """What was found, in one line."""
        height, width = self.label.shape
        shares = (
            f"{printable(name)} {self.areas[1 + self.class_names.index(name)]:.1%}" for name in self.found
        )
        found = ", ".join(shares) or "background alone"
        return f"Prediction({printable(self.name)!r}, {width}×{height} pixels: {found})"

    def _repr_png_(self) -> bytes:
        """The overlay, which notebooks draw."""
        return encode_png(self.overlay())

    def probability(self, name: str) -> NDArray[np.float32]:
        """Probability (H, W) in [0, 1] of a class, or of ``background``; 0 for classes that no tag names.

        A UserError says that there is no such class.
        """
        label = 0 if name == BACKGROUND else 1 + class_index(name, self.class_names)
        if label not in self._labels:
            return np.zeros(self.label.shape, np.float32)
        return self._enlarge(self._probabilities[self._labels.index(label)])

    def cam(self, name: str) -> NDArray[np.float32]:
        """Class activation map (H, W) in [0, 1]: where the classifier sees a class; made when asked for.

        Each map is scaled by itself: that of a class which is not there has a hottest place too. A
        UserError says that there is no such class.
        """
        index = class_index(name, self.class_names)
        if index not in self._cams:  # several at once cost as much as one
            wanted = {index, *(self.class_names.index(found) for found in self.found)} - self._cams.keys()
            self._cams.update(zip(wanted, self._locate(list(wanted)), strict=True))
        return self._enlarge(self._cams[index])

    def overlay(self) -> NDArray[np.uint8]:
        """Picture (H', W', 3): the label's colours over the grey image, and a legend below."""
        labels = [(1 + self.class_names.index(name), name) for name in self.found]
        return add_legend(_paint(paint_label, self.image, self.label), labels)

    def save(self, folder: str | Path, name: str | None = None, cams: bool = True) -> dict[str, Any]:
        """Write ``masks/NAME.png``, ``overlays/NAME.png`` and ``cams/NAME/LABEL_CLASS.png``.

        Masks have the palette of PASCAL VOC, their values are labels. A file appears complete or not at all.
        The folder is made if it is not there; NAME is ``self.name`` by default and may lead into sub-folders.
        ``cams`` draws the heat map of each class in ``found``. Return sizes, scores, areas and the files
        written, as plain values for JSON; a UserError says that a file cannot be written.
        """
        folder, name = Path(folder), name or self.name
        record: dict[str, Any] = {"width": self.label.shape[1], "height": self.label.shape[0]}
        record |= {"mask": f"masks/{name}.png", "overlay": f"overlays/{name}.png"}
        record |= {"background_area": float(self.areas[0]), "classes": list(map(self._describe, self.found))}
        try:
            save_label(self.label, folder / record["mask"])
            save_picture(self.overlay(), folder / record["overlay"])
            for found in record["classes"] if cams else ():
                safe = re.sub(r"[^\w-]", "_", found["name"])[:40]
                found["cam"] = f"cams/{name}/{found['label']}_{safe}.png"
                save_picture(_paint(paint_heat, self.image, self.cam(found["name"])), folder / found["cam"])
        except OSError as error:
            path = error.filename2 or error.filename or folder
            raise UserError(f"{path} cannot be written ({error.strerror}): mend it or set out") from error
        return record

    def _describe(self, name: str) -> dict[str, Any]:
        index = self.class_names.index(name)
        score, area = float(self.scores[index]), float(self.areas[index + 1])
        return {"name": name, "label": index + 1, "score": score, "area": area}

    def _enlarge(self, values: Tensor) -> NDArray[np.float32]:
        return resize_maps(values[None], self.label.shape)[0].cpu().numpy()


def class_index(name: str, class_names: Sequence[str]) -> int:
    """Which foreground class has this name; a `UserError` if none has."""
    if name in class_names:
        return list(class_names).index(name)
    if (same := tidy(str(name))) in class_names:
        return list(class_names).index(same)
    near = difflib.get_close_matches(str(name), class_names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(class_names)}"
    raise UserError(f"{name!r} is no class of this checkpoint; {hint}")


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (n, h, w) to (n, H, W), bilinear."""
    return maps if maps.shape[1:] == tuple(size) else resize(maps[None], size)[0]


def _paint(paint: Callable[..., Any], image: NDArray[np.uint8], values: NDArray[Any]) -> NDArray[np.uint8]:
    """Paint in bands of rows: painting takes some dozen times the memory of its picture."""
    bands = range(0, len(image), _BAND)
    return np.concatenate([paint(image[top : top + _BAND], values[top : top + _BAND]) for top in bands])
