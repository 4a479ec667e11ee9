"""Geometry of the report's charts; its template draws them as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

_SIDE = 600
"""Wanted side of the heat map in pixels; many classes may need more."""
_CELL = (9, 56)
"""Least and largest side of a cell in pixels."""
_MAX_NUMBERED = 25
"""Classes up to which cells carry numbers."""
_MAX_NAME = 24
"""Characters of a name beside the heat map."""
_DARK = 0.35
"""Share above which the shade takes white numbers."""
_NO_TRUTH = 238
"""Grey of a row without a true pixel."""
_WIDTH, _HEIGHT = 640, 220
"""Of the area of the curves in pixels."""


def to_data_uri(content: bytes, kind: str) -> str:
    """A file of a media type such as ``image/png`` as its own address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def shade(share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours (…, 3) of shares in [0, 1], by their square root so that small ones show; NaN is grey."""
    colours: NDArray[np.uint8] = (255 * colormaps["Blues"](np.sqrt(share))[..., :3]).round().astype(np.uint8)
    colours[np.isnan(share)] = _NO_TRUTH
    colours[share == 0] = 255
    return colours


def draw_heat_map(confusion: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Where the parts of the row-normalised heat map go.

    Args:
        confusion: (K, K), true classes in rows.
        names: K, background included.
    """
    count = len(names)
    cell = min(max(_CELL[0], _SIDE // count), _CELL[1])
    font = min(12, max(8, cell - 1))
    with np.errstate(invalid="ignore"):
        share = confusion / confusion.sum(1, keepdims=True)
    short = [name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…" for name in names]
    numbered = count <= _MAX_NUMBERED
    legend = [0.0, 0.01, 0.05, 0.2, 0.5, 1.0]
    return {
        "image": _encode_png(shade(share)),
        "cell": cell,
        "font": font,
        "side": cell * count,
        "margin": math.ceil(max(_text_width(name) for name in short) * font) + 10,
        "names": list(zip(names, short, strict=True)),
        "numbers": _numbers(share) if numbered else [],
        "legend": [
            (each, "#{:02x}{:02x}{:02x}".format(*colour))
            for each, colour in zip(legend, shade(np.array(legend)).tolist(), strict=True)
        ],
    }


def _numbers(share: NDArray[np.floating]) -> list[dict[str, Any]]:
    """Whole percents of the cells that have at least one, and whether they stand on dark ground."""
    cells = np.argwhere(share >= 0.005).tolist()
    return [
        {
            "row": row,
            "column": column,
            "text": f"{100 * share[row, column]:.0f}",
            "dark": bool(share[row, column] > _DARK),
        }
        for row, column in cells
    ]


def _text_width(text: str) -> float:
    """Estimate in units of the font's size; letters beyond Latin, Greek and Cyrillic may be wide."""
    return sum(1.0 if ord(letter) > 0x2E7F else 0.6 for letter in text)


def _encode_png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return to_data_uri(buffer.getvalue(), "image/png")


def draw_curves(
    history: dict[str, list[tuple[int, float]]], colours: dict[str, str]
) -> dict[str, Any] | None:
    """Where the parts of the curves of mIoU over steps go; None without a history.

    Args:
        history: step and percent by title.
        colours: by title; others are black.
    """
    if not history:
        return None
    points = [point for curve in history.values() for point in curve]
    steps = _ticks(0, max(step for step, _ in points))
    scores = _ticks(min(score for _, score in points), max(score for _, score in points))

    def place(step: float, score: float) -> tuple[float, float]:
        x = (step - steps[0]) / (steps[-1] - steps[0]) * _WIDTH
        y = (scores[-1] - score) / (scores[-1] - scores[0]) * _HEIGHT
        return round(x, 1), round(y, 1)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "x": [(f"{step:g}", place(step, scores[0])[0]) for step in steps],
        "y": [(f"{score:g}", place(0, score)[1]) for score in scores],
        "curves": [
            {
                "title": title,
                "colour": colours.get(title, "#000000"),
                "points": [(*place(*point), *point) for point in curve],
                "last": curve[-1],
                "best": max(curve, key=lambda point: point[1]),
            }
            for title, curve in history.items()
        ],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, max(high, low + 1))
    return [float(tick) for tick in ticks]
