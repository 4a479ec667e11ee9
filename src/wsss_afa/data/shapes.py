"""The shapes of synthetic scenes: where they lie and how they are painted.

Shapes and textures are functions of an object's own coordinates u, v: the shape fits in [-1, 1]² and is
negative inside, about the distance to the outline; the texture is positive in one tone, negative in the
other. Pixels and mask come from the same function.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_VISIBLE = 0.006  # an object shows at least this share of the image
MIN_KEPT = 0.6  # an object keeps at least this share of its pixels under later objects
CLUTTER_SATURATION = 0.2
MAX_CLUTTER = 8
PLACEMENT_TRIES = 6

Array = NDArray[np.floating[Any]]
Field = Callable[[Array, Array], Array]
Window = tuple[slice, slice]


def _star(u: Array, v: Array) -> Array:
    inner, half = 0.5, math.pi / 5
    radius = np.hypot(u, v)
    angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)  # every point folded onto half a ray
    along, across = inner * math.cos(half) - 1, inner * math.sin(half)  # from the tip to the notch
    distance = across * (radius * np.cos(angle) - 1) - along * radius * np.sin(angle)
    return distance / math.hypot(along, across)


class Kind(NamedTuple):
    """What makes a class, besides its hue."""

    name: str
    shape: Field
    texture: Field


KINDS = (
    Kind("disc",  # rings
         lambda u, v: np.hypot(u, v) - 1,
         lambda u, v: np.cos(np.hypot(u, v) * 12)),
    Kind("box",  # checker
         lambda u, v: np.maximum(abs(u), abs(v)) - 0.88,
         lambda u, v: np.sin(u * 7) * np.sin(v * 7) * 1.5),
    Kind("triangle",  # dots
         lambda u, v: np.maximum(-v, abs(u) * math.sqrt(0.75) + v * 0.5) - 0.55,
         lambda u, v: np.cos(u * 11) + np.cos(v * 11) - 0.3),
    Kind("star",  # pinwheel
         _star,
         lambda u, v: np.sin(np.arctan2(v, u) * 5 + np.hypot(u, v) * 5)),
    Kind("ring",  # wedges
         lambda u, v: abs(np.hypot(u, v) - 0.65) - 0.35,
         lambda u, v: np.sin(np.arctan2(v, u) * 6)),
    Kind("cross",  # stripes
         lambda u, v: np.maximum(np.maximum(abs(u), abs(v)) - 1, np.minimum(abs(u), abs(v)) - 0.36),
         lambda u, v: np.sin((u + v) * 7)),
    Kind("crescent",  # blobs
         lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.75 - np.hypot(u - 0.55, v)),
         lambda u, v: np.cos(u * 8 + np.sin(v * 6) * 1.5) + np.cos(v * 8 + np.sin(u * 5) * 1.5)),
    Kind("bar",  # zigzag
         lambda u, v: np.maximum(abs(u) - 1, abs(v) - 0.42),
         lambda u, v: np.sin(v * 11 + abs(u * 3 % 2 - 1) * 7)),
)  # fmt: skip


class Pose(NamedTuple):
    """Where an object lies: centre and half sides in pixels (pixel centres at .5), angle in radians."""

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float

    def window(self, size: int) -> Window:
        """Rows and columns of a ``size`` × ``size`` image that can hold the object."""
        reach = 1.3 * max(self.half_width, self.half_height) + 1  # the box's corner: 0.88 · √2
        top, left = max(0, int(self.y - reach)), max(0, int(self.x - reach))
        return slice(top, min(size, int(self.y + reach) + 1)), slice(left, min(size, int(self.x + reach) + 1))

    def coordinates(self, window: Window) -> tuple[Array, Array]:
        """The object's own u and v at every pixel centre of a window."""
        rows, columns = window
        dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - self.y)
        dx = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - self.x)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        u = dx * (cos / self.half_width) + dy * (sin / self.half_width)
        v = dy * (cos / self.half_height) - dx * (sin / self.half_height)
        return u, v


class Object(NamedTuple):
    """An object in place: its class, and the pixels that can hold it."""

    category: int
    window: Window
    u: Array
    v: Array
    distance: Array  # to the outline in pixels, negative inside
    area: int  # in pixels, before later objects cover some


def place(
    rng: np.random.Generator, size: int, num_classes: int, max_objects: int
) -> tuple[list[Object], NDArray[np.uint8]]:
    """Objects from back to front and their mask; one that finds no place in a few tries is left out."""
    objects: list[Object] = []
    mask = np.zeros((size, size), np.uint8)
    for category in rng.permutation(num_classes)[: rng.integers(1, max_objects, endpoint=True)]:
        for _ in range(PLACEMENT_TRIES):
            item = outline(rng, size, int(category))
            trial = mask.copy()
            trial[item.window][item.distance <= 0] = item.category + 1
            if all(_is_visible(trial, each) for each in [*objects, item]):
                objects, mask = [*objects, item], trial
                break
    assert objects, "the first object always finds a place"
    return objects, mask


def outline(rng: np.random.Generator, size: int, category: int) -> Object:
    """A random pose, at most a little over the border."""
    half_width = size * rng.uniform(0.35, 0.65) / 2
    half_height = half_width * rng.uniform(0.7, 1.0)
    x, y = rng.uniform(0.8 * half_width, size - 0.8 * half_width, 2)
    pose = Pose(x, y, half_width, half_height, rng.uniform(0, 2 * math.pi))
    window = pose.window(size)
    u, v = pose.coordinates(window)
    distance = KINDS[category].shape(u, v) * half_height
    return Object(category, window, u, v, distance, int(np.count_nonzero(distance <= 0)))


def _is_visible(mask: NDArray[np.uint8], item: Object) -> bool:
    visible = int(np.count_nonzero(mask[item.window] == item.category + 1))
    return visible >= MIN_KEPT * item.area and visible > MIN_VISIBLE * mask.size


def _rgb(hue: float, saturation: float, value: float) -> Array:
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """(size, size, 3): a colour, three octaves of smooth noise, clutter."""
    noise = np.zeros((3, 3, 3), np.float32)
    contrast = rng.uniform(10, 40)
    for cells in (3, 6, 12):
        noise = cv2.resize(noise, (cells, cells), interpolation=cv2.INTER_CUBIC)
        brightness, tint = rng.uniform(-1, 1, (cells, cells, 1)), rng.uniform(-0.6, 0.6, noise.shape)
        noise += (contrast * (brightness + tint)).astype(np.float32)
        contrast *= 0.65
    noise += _rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.25, 0.9))
    smooth = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    canvas: NDArray[np.uint8] = smooth.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, MAX_CLUTTER, endpoint=True)):
        _draw_clutter(canvas, rng)
    return canvas


def _draw_clutter(canvas: NDArray[np.uint8], rng: np.random.Generator) -> None:
    size = len(canvas)
    colour = _rgb(rng.random(), CLUTTER_SATURATION, rng.uniform(0.2, 1)).tolist()
    sides = size * rng.uniform(0.03, 0.15, 2)
    frame = (tuple(rng.uniform(0, size, 2)), tuple(sides), rng.uniform(0, 180))
    if rng.random() < 0.5:
        cv2.ellipse(canvas, frame, colour, cv2.FILLED, cv2.LINE_AA)
    else:
        corners = np.rint(cv2.boxPoints(frame) * 16).astype(np.int32)
        cv2.fillConvexPoly(canvas, corners, colour, cv2.LINE_AA, shift=4)


def paint(canvas: Array, item: Object, hue: float, rng: np.random.Generator) -> None:
    """Lay a two-tone, shaded object over the canvas in place, its outline anti-aliased."""
    light = _rgb(hue, rng.uniform(0.5, 0.75), rng.uniform(0.75, 0.88))
    dark = _rgb(hue, rng.uniform(0.8, 1.0), rng.uniform(0.3, 0.45))
    if rng.random() < 0.5:
        light, dark = dark, light
    scale = rng.uniform(0.85, 1.2)
    tone = KINDS[item.category].texture(item.u * scale, item.v * scale)
    tone = (2.5 * tone + 0.5).clip(0, 1)[..., None]
    direction, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.15)
    shade = 1 + item.u * (strength * math.cos(direction)) + item.v * (strength * math.sin(direction))
    colour = (dark + tone * (light - dark)) * shade[..., None]
    patch = canvas[item.window]
    patch += (0.5 - item.distance).clip(0, 1)[..., None] * (colour - patch)
