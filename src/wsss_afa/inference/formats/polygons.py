"""Regions of pixels as simple polygons that cover exactly these pixels.

A polygon runs within the pixels at the region's rim, a quarter of a pixel from their outer edges. So it is
exact for whoever asks which pixels' centres lie inside, and for whoever cuts the fractions off and draws the
line as well as what it encloses, as LabelMe and Ultralytics do. Polygons have no holes: a region with a hole
is cut in two through it.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDES = 4  # neighbours that connect pixels: those with a common edge


def polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Polygons, (n, 2) of x and y in pixels from the upper left corner, that together cover a mask (H, W)."""
    return [_outline(part) + corner for part, corner in _parts(mask.astype(np.uint8))]


def _parts(mask: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Connected regions without holes, each in a mask of its own, and where its corner (x, y) is."""
    count, regions, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=_SIDES)
    for index in range(1, count):
        left, top, width, height = (int(each) for each in boxes[index, :4])
        own = (regions[top : top + height, left : left + width] == index).astype(np.uint8)
        row, corner = _cut(own), np.array([left, top])
        if not row:
            yield own, corner
            continue
        for half, above in ((own[:row], 0), (own[row:], row)):
            yield from ((part, corner + place + (0, above)) for part, place in _parts(half))


def _cut(mask: NDArray[np.uint8]) -> int:
    """A row at which a cut opens a hole; 0 where there is none."""
    around = np.pad(1 - mask, 1, constant_values=1)
    count, regions, boxes, _ = cv2.connectedComponentsWithStats(around, connectivity=_SIDES)
    holes = (boxes[i] for i in range(1, count) if i != regions[0, 0])  # the other is what is around the mask
    return next((int(box[1] - 1 + box[3] // 2) for box in holes), 0)  # a row of the hole, or its first


def _outline(mask: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The polygon (n, 2) of a region without holes: through the quarters of its outer pixels."""
    quarters = mask.repeat(2, 0).repeat(2, 1)
    (contour,), _ = cv2.findContours(quarters, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outline: NDArray[np.float64] = (contour[:, 0] + 0.5) / 2
    return outline
