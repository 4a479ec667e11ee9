"""Pictures: images, heat maps and labels side by side."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsss_afa.errors import printable
from wsss_afa.files import write_whole
from wsss_afa.types import IGNORE_INDEX

_CELL, _GAP, _LINE, _ENTRY = 1.7, 0.04, 0.25, 1.25
"""Inches: side of a picture, its margin left and right, a line of text, and width of an entry of a legend."""
_MAX_NAME, _MAX_NUMBERED = 24, 25
"""Characters of a name beside a confusion matrix; classes up to which its cells carry numbers."""


class Scene(NamedTuple):
    """One image and what was made of it."""

    caption: str  # name of the image and its classes
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    layers: dict[str, NDArray[Any]]
    """By title: heat maps (H, W) float in [0, 1] and labels (H, W) integer in [0, C] or 255."""
    point: tuple[int, int] | None = None  # row and column of the pixel that the maps belong to, if it is one


class Panel(NamedTuple):
    """One picture of a row, (H, W, 3) RGB, and the title of its column."""

    title: str
    pixels: NDArray[np.uint8]


def voc_palette(count: int = 256) -> NDArray[np.uint8]:
    """Colours of PASCAL VOC's label images, (count, 3) RGB: an index's bits dealt out to three channels."""
    places = np.arange(24).reshape(8, 3)  # an index's bit 3k + c is bit 7 - k of channel c
    return np.packbits(np.arange(count)[:, None, None] >> places & 1, axis=1)[:, 0]


def paint_label(
    image: NDArray[np.uint8], label: NDArray[np.integer], alpha: float = 0.75
) -> NDArray[np.uint8]:
    """Lay the colours of a label (H, W) over the grey image (H, W, 3); ignored pixels are hatched."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    colours = voc_palette()[np.clip(label, 0, 255)].astype(np.float64)
    stripe = max(2, round(max(label.shape) / 64))  # pixels: to be seen on small pictures, too
    hatching = np.indices(label.shape).sum(0) // stripe % 2 * 191 + 64
    colours[label == IGNORE_INDEX] = hatching[label == IGNORE_INDEX, None]
    share = np.where(label == 0, 0.0, alpha)[..., None]
    mixed: NDArray[np.uint8] = (grey * (1 - share) + colours * share).round().astype(np.uint8)
    return mixed


def paint_heat(image: NDArray[np.uint8], heat: NDArray[np.floating], alpha: float = 0.6) -> NDArray[np.uint8]:
    """Lay a heat map (H, W) in [0, 1] over an image (H, W, 3)."""
    colours = colormaps["jet"](heat)[..., :3] * 255
    mixed: NDArray[np.uint8] = (image * (1 - alpha) + colours * alpha).round().astype(np.uint8)
    return mixed


def paint_scene(scene: Scene) -> list[Panel]:
    """The image, then each of its layers laid over it; its point is marked in all of them."""
    panels = [Panel("image", scene.image)]
    for title, layer in scene.layers.items():
        paint = paint_heat if np.issubdtype(layer.dtype, np.floating) else paint_label
        panels.append(Panel(title, paint(scene.image, layer)))
    if scene.point is not None:
        panels = [panel._replace(pixels=mark_point(panel.pixels, scene.point)) for panel in panels]
    return panels


def mark_point(pixels: NDArray[np.uint8], point: tuple[int, int]) -> NDArray[np.uint8]:
    """A copy of a picture (H, W, 3) with a white cross in a black rim at a pixel (row, column)."""
    marked = Image.fromarray(pixels)
    draw = ImageDraw.Draw(marked)
    (y, x), unit = point, max(1, round(max(pixels.shape[:2]) / 96))
    for colour, length, half in (("black", 4 * unit, unit), ("white", 3 * unit, unit // 2)):
        draw.rectangle((x - length, y - half, x + length, y + half), fill=colour)
        draw.rectangle((x - half, y - length, x + half, y + length), fill=colour)
    return np.array(marked)


def confusion_figure(confusion: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Draw which class each class's pixels are taken for, in shares of the rows of a matrix (K, K).

    A row without pixels stays grey. Long names are cut; up to 25 classes, cells carry percents.
    """
    with np.errstate(invalid="ignore"):
        share = confusion / confusion.sum(1, keepdims=True)
    side = min(12.0, 3.0 + 0.3 * len(names))
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axis = figure.add_subplot(facecolor="lightgrey", xlabel="predicted", ylabel="true")
    shown = axis.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="none")
    size = max(4.0, min(9.0, 550 / len(names)))
    whole = map(printable, names)
    short = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in whole]
    axis.set_xticks(range(len(names)), short, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(range(len(names)), short, fontsize=size, parse_math=False)
    figure.colorbar(shown, ax=axis, shrink=0.7, label="share of the true class's pixels")
    for row, column in np.argwhere(share >= 0.005) if len(names) <= _MAX_NUMBERED else ():
        colour = "white" if share[row, column] > 0.35 else "black"
        text = f"{100 * share[row, column]:.0f}"
        axis.text(column, row, text, fontsize=7, ha="center", va="center", color=colour)
    return figure


def curve_figure(curves: Mapping[str, Sequence[tuple[int, float]]], colours: Mapping[str, str]) -> Figure:
    """Draw percentages over steps, pairs by title; titles without a colour are black."""
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="mIoU (%)")
    for title, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", color=colours.get(title, "black"), markersize=4)
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def to_svg(figure: Figure) -> bytes:
    """A figure as an SVG file without a date, in which letters stay text, whatever their script."""
    buffer = io.BytesIO()
    with _missing_glyphs(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "wsss_afa"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """A figure as a picture (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    with _missing_glyphs():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def add_legend(picture: NDArray[np.uint8], classes: Sequence[tuple[int, str]]) -> NDArray[np.uint8]:
    """Set a white strip with colours and names of classes, given as (label, name), under a picture (H, W, 3).

    The result (H', W', 3) is wider than the picture only where a name would not fit.
    """
    classes = [(label, printable(name)) for label, name in classes]
    height, width = picture.shape[:2]
    size = max(12, width // 50)  # of the letters, in pixels
    font = ImageFont.truetype(findfont("DejaVu Sans"), size)
    widths = [round(font.getlength(name) + 2.5 * size) for _, name in classes]
    full = max([width, *widths])
    places = _flow(widths, full)
    strip = round(1.5 * size * (1 + max((row for _, row in places), default=-1)))
    canvas = Image.new("RGB", (full, height + strip), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for (label, name), (left, row) in zip(classes, places, strict=True):
        left, top = left + size // 4, height + round((1.5 * row + 0.25) * size)
        colour = tuple(voc_palette()[label].tolist())
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=colour, outline="grey")
        draw.text((left + 1.4 * size, top + 0.85 * size), name, "black", font, anchor="ls")
    return np.array(canvas)


def _flow(widths: Sequence[int], limit: int) -> list[tuple[int, int]]:
    places, left, row = [], 0, 0
    for width in widths:
        if left and left + width > limit:
            left, row = 0, row + 1
        places.append((left, row))
        left += width
    return places


def picture_grid(rows: Sequence[tuple[str, Sequence[Panel]]], classes: Sequence[tuple[int, str]]) -> Figure:
    """Draw rows, captions with panels in the same order everywhere, and a legend of labels and names."""
    columns = max(len(panels) for _, panels in rows)
    inner = _CELL - 2 * _GAP
    heights = [inner * panels[0].pixels.shape[0] / panels[0].pixels.shape[1] for _, panels in rows]
    palette = voc_palette() / 255
    handles = [Patch(color=palette[label]) for label, _ in classes]
    handles.append(Patch(facecolor="white", edgecolor="grey", hatch="////"))
    names = [*(printable(name) for _, name in classes), "ignored"]
    in_line = max(1, min(len(handles), int(_CELL * columns / _ENTRY)))
    foot = _LINE * (-(-len(handles) // in_line) + 0.5)
    width, top = _CELL * columns, _LINE + sum(height + _LINE for height in heights) + foot
    figure = Figure(figsize=(width, round(top, 2) + 1e-3), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, top), autoscale_on=False)  # one costs 8 ms
    axis.set_axis_off()
    edge = top - _LINE
    for column, panel in enumerate(rows[0][1]):
        axis.text((column + 0.5) * _CELL, edge + 0.05, panel.title, fontsize=9, ha="center")
    for height, (caption, panels) in zip(heights, rows, strict=True):
        for column, panel in enumerate(panels):
            left = column * _CELL + _GAP
            extent = (left, left + inner, edge - height, edge)
            axis.imshow(panel.pixels, interpolation="nearest", aspect="auto", extent=extent)
        edge -= height + _LINE
        axis.text(_GAP, edge + _LINE - 0.05, printable(caption), fontsize=8, va="top", parse_math=False)
    legend = figure.legend(
        handles, map(str, range(len(names))), loc="lower center", ncols=in_line, fontsize=8
    )
    legend.set_frame_on(False)
    for text, name in zip(
        legend.get_texts(), names, strict=True
    ):  # as a label, `_x` is hidden and `$` formula
        text.set(text=name, parse_math=False)
    return figure


def contact_sheet(pictures: Sequence[tuple[str, NDArray[np.uint8]]], columns: int = 8) -> Figure:
    """Draw small pictures (H, W, 3), ``columns`` in a row, each under its caption of at most two lines."""
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(_CELL * columns, (_CELL + 0.35) * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (caption, pixels) in zip(axes, pictures, strict=False):
        axis.imshow(pixels)
        lines = caption.split("\n")
        axis.set_title("\n".join(map(printable, lines)), fontsize=7, parse_math=False)
    return figure


def save_label(label: NDArray[np.uint8], path: Path) -> None:
    """Write a label (H, W) as a PNG whose palette is PASCAL VOC's: pixel values are classes."""
    write_whole(path, label_png(label))


def label_png(label: NDArray[np.uint8]) -> bytes:
    """What `save_label` writes."""
    image = Image.fromarray(label)
    image.putpalette(voc_palette().ravel().tolist())
    return _png(image)


def save_picture(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture (H, W, 3) as a PNG."""
    write_whole(path, _png(Image.fromarray(pixels)))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    with _missing_glyphs():
        figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)  # half the time of 6 at about the same size
    return buffer.getvalue()


@contextmanager
def _missing_glyphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in a script it lacks
        yield
