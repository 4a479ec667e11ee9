"""Pictures: images, heat maps and labels side by side."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from wsss_afa.types import IGNORE_INDEX

_CELL = 1.7
"""Side of a picture in inches, at 100 dots per inch."""


class Panel(NamedTuple):
    """One picture of a row."""

    title: str
    """Of its column."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""


def voc_palette(count: int = 256) -> NDArray[np.uint8]:
    """Colours of PASCAL VOC's label images, (count, 3) RGB: an index's bits dealt out to three channels."""
    index = np.arange(count)
    palette = np.zeros((count, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def paint_label(
    image: NDArray[np.uint8], label: NDArray[np.integer], alpha: float = 0.75
) -> NDArray[np.uint8]:
    """Lay the colours of a label (H, W) over the grey image (H, W, 3); ignored pixels are whitened."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    colours = voc_palette()[np.clip(label, 0, 255)].astype(np.float64)
    colours[label == IGNORE_INDEX] = 255
    share = np.where(label == 0, 0.0, alpha)[..., None]
    mixed: NDArray[np.uint8] = (grey * (1 - share) + colours * share).round().astype(np.uint8)
    return mixed


def paint_heat(image: NDArray[np.uint8], heat: NDArray[np.floating], alpha: float = 0.6) -> NDArray[np.uint8]:
    """Lay a heat map (H, W) in [0, 1] over an image (H, W, 3)."""
    colours = colormaps["jet"](heat)[..., :3] * 255
    mixed: NDArray[np.uint8] = (image * (1 - alpha) + colours * alpha).round().astype(np.uint8)
    return mixed


def picture_grid(rows: Sequence[tuple[str, Sequence[Panel]]], classes: Sequence[tuple[int, str]]) -> Figure:
    """Draw rows of panels with a legend.

    Args:
        rows: of each image its caption and its panels, in the same order in every row.
        classes: label and name of the classes in the legend.
    """
    columns = max(len(panels) for _, panels in rows)
    aspects = [panels[0].pixels.shape[0] / panels[0].pixels.shape[1] for _, panels in rows]
    size = (_CELL * columns, sum(_CELL * aspect + 0.25 for aspect in aspects) + 0.7)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=aspects)
    for row, (caption, panels) in enumerate(rows):
        for axis, panel in zip(axes[row], panels, strict=False):
            axis.imshow(panel.pixels, interpolation="nearest")
            axis.set_title(panel.title if row == 0 else "", fontsize=9)
        for axis in axes[row]:
            axis.set_axis_off()
        corner = axes[row, 0]
        text = corner.text(0, -0.03, caption, transform=corner.transAxes, fontsize=8, va="top")
        text.set_in_layout(False)  # a long caption runs on under the next panels
    palette = voc_palette() / 255
    handles = [Patch(color=palette[label], label=name) for label, name in classes]
    handles.append(Patch(facecolor="white", edgecolor="grey", label="ignored"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False
    )
    return figure


def contact_sheet(pictures: Sequence[tuple[str, NDArray[np.uint8]]], columns: int = 8) -> Figure:
    """Draw small pictures side by side, each under its caption.

    Args:
        pictures: Caption of at most two lines, and RGB (H, W, 3).
        columns: Pictures in a row.
    """
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(_CELL * columns, (_CELL + 0.35) * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (caption, pixels) in zip(axes, pictures, strict=False):
        axis.imshow(pixels)
        axis.set_title(caption, fontsize=7, parse_math=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG; a file of that name appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():  # names of classes may be in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(partial, format="png")
    partial.replace(path)
