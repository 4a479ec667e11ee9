"""Pixel-adaptive refinement (AFA, equations 8 to 10) on a GPU: a kernel for weights, one for an iteration.

The sums of ``par.py`` in float32, without gradients. Neighbours beyond the border are clamped to it: nothing
is padded, and no tensor of neighbours is built. Needs Triton; without it ``par.py`` does all itself.

Weights are stored. In bytes per pixel and iteration, with P = 48:

- stored: 4 · 48 = 192, read once for all maps of a group.
- made again from colours: three colours, three spreads and two soft-max terms of the pixel, 32, and its
  neighbours' 3 · 4 · 48 = 576 from L1. A block of 128 pixels in a row sees 13 rows, on each a run of up to
  128 + 2 · dilation, so that 3 · 4 · 1916 / 128 = 180 of these come from L2.

That is 212 against 192 through L2, where the weights of an image at half the crop, 12.6 MB, often have room;
only the memory behind it would be read less. So the simpler form stays, which has no exponentials in its loop
either. Each map costs the same in both: 60 from L2 and 4 written.

Legend, besides that of ``types.py``: P neighbours, eight for each of D dilations; G maps.
"""
# mypy: disable-error-code="import-untyped, import-not-found"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# (kernels: their arguments are pointers, blocks and scalars of Triton's)

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:  # the module can be imported all the same; ``works_on`` says no
    triton = None

_BLOCK = 128  # pixels of a program
_MAX_GROUP = 8  # maps of a program at most: it reads each weight once for all of them


@functools.cache
def works_on(device: torch.device) -> bool:
    """Whether kernels run there: with Triton, the C compiler that it calls, and a device not too old."""
    if triton is None:
        return False
    try:
        weights, dilations = torch.ones(1, 8, 1, 1, device=device), torch.ones(1, device=device).int()
        iterate(weights, torch.ones(1, 1, 1, 1, device=device), dilations, num_iter=1)
    except Exception as error:  # of Triton, of the compilers that it calls, of the driver
        warnings.warn(f"refinement without Triton, which fails on {device}: {error!r}", stacklevel=2)
        return False
    return True


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


def kernel(
    image: Tensor, dilations: Tensor, color_width: float, position: Tensor, extent: Tensor | None = None
) -> Tensor:
    """Weights of the P neighbours of each pixel, (B, P, H, W) float32.

    Args:
        image: (B, 3, H, W) float32 RGB in [0, 1].
        dilations: (D,) int32, pixels.
        color_width: w1, in standard deviations of the neighbourhood.
        position: (P,) float32, what distance adds to the weights.
        extent: (B, 2) int64, height and width of what of each canvas is image; None: all of it.
    """
    batch, channels, height, width = image.shape
    assert channels == 3
    assert len(position) == 8 * len(dilations)
    weights = image.new_empty(batch, len(position), height, width)
    grid = (triton.cdiv(height * width, _BLOCK), batch)
    extent = None if extent is None else extent.contiguous()
    with torch.cuda.device_of(image):
        _weigh[grid](
            image.contiguous(), dilations, position, extent, weights,
            height, width, len(dilations), color_width, _BLOCK,
        )  # fmt: skip
    return weights


def iterate(
    weights: Tensor, maps: Tensor, dilations: Tensor, num_iter: int, extent: Tensor | None = None
) -> Tensor:
    """``maps`` after ``num_iter`` weighted sums over their neighbours, (B, G, H, W) float32.

    Args:
        weights: (B, P, H, W) float32, contiguous.
        maps: (B, G, H, W) float32; left as they are.
        dilations: (D,) int32, pixels, in the order of the weights.
        num_iter: how often.
        extent: (B, 2) int64, height and width of what of each canvas is image; None: all of it.
    """
    batch, num_maps, height, width = maps.shape
    assert weights.shape == (batch, 8 * len(dilations), height, width)
    assert weights.is_contiguous()
    group = min(_MAX_GROUP, triton.next_power_of_2(num_maps))
    groups = triton.cdiv(num_maps, group)
    grid = (groups * triton.cdiv(height * width, _BLOCK), batch)
    extent = None if extent is None else extent.contiguous()
    maps = maps.contiguous()
    for _ in range(num_iter):
        refined = torch.empty_like(maps)
        with torch.cuda.device_of(maps):
            _average[grid](
                weights, maps, dilations, extent, refined,
                num_maps, height, width, len(dilations), groups, group, _BLOCK,
            )  # fmt: skip
        maps = refined
    return maps


@_jit
def _last(extent, image, axis: constexpr, length):
    """Last row (axis 0) or column (axis 1) of an image on a canvas of that length."""
    last = length - 1
    if extent is not None:
        last = tl.load(extent + 2 * image + axis).to(tl.int32) - 1
    return last


@_jit
def _neighbour(pixel, step, direction: constexpr, width, bottom, right):
    """Neighbour's place in its plane; directions are eight, from the top left, row by row."""
    cell: constexpr = direction + direction // 4  # of 3 × 3, the centre left out
    row = pixel // width + (cell // 3 - 1) * step
    column = pixel % width + (cell % 3 - 1) * step
    row = tl.minimum(tl.maximum(row, 0), bottom)
    return row * width + tl.minimum(tl.maximum(column, 0), right)


@_jit
def _spread(plane, pixel, dilations, num_dilations, width, bottom, right):
    """Standard deviation of a channel over the neighbours of each pixel."""
    mean = tl.zeros_like(pixel).to(tl.float32)
    for i in range(num_dilations):
        step = tl.load(dilations + i)
        for k in tl.static_range(8):
            mean += tl.load(plane + _neighbour(pixel, step, k, width, bottom, right))
    mean /= 8.0 * num_dilations
    squares = tl.zeros_like(mean)
    for i in range(num_dilations):
        step = tl.load(dilations + i)
        for k in tl.static_range(8):
            difference = tl.load(plane + _neighbour(pixel, step, k, width, bottom, right)) - mean
            squares += difference * difference
    return tl.sqrt(squares / (8.0 * num_dilations - 1.0))


@_jit
def _unlikeness(plane, pixel, neighbour, spread):
    """Squared difference of a channel, in units of ``spread``."""
    difference = (tl.load(plane + pixel) - tl.load(plane + neighbour)) / spread
    return difference * difference


@_jit
def _weigh(
    image, dilations, position, extent, weights, height, width, num_dilations, color_width, block: constexpr
):
    """Weights of a block of pixels: spreads, then the soft-max's maximum and sum in one pass, then itself."""
    index = tl.program_id(1).to(tl.int64)
    bottom = _last(extent, index, 0, height)
    right = _last(extent, index, 1, width)
    size = height * width
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    pixel = tl.minimum(pixel, size - 1)  # the last block repeats the last pixel
    red = image + index * 3 * size
    green = red + size
    blue = green + size
    r = (_spread(red, pixel, dilations, num_dilations, width, bottom, right) + 1e-8) * color_width
    g = (_spread(green, pixel, dilations, num_dilations, width, bottom, right) + 1e-8) * color_width
    b = (_spread(blue, pixel, dilations, num_dilations, width, bottom, right) + 1e-8) * color_width
    least = tl.zeros_like(r) + float("inf")
    total = tl.zeros_like(r)
    for i in range(num_dilations):
        step = tl.load(dilations + i)
        for k in tl.static_range(8):
            near = _neighbour(pixel, step, k, width, bottom, right)
            cost = _unlikeness(red, pixel, near, r) + _unlikeness(green, pixel, near, g)
            cost = (cost + _unlikeness(blue, pixel, near, b)) / 3.0
            smaller = tl.minimum(least, cost)
            total = total * tl.exp(smaller - least) + tl.exp(smaller - cost)
            least = smaller
    target = weights + index * 8 * num_dilations * size + pixel
    for i in range(num_dilations):
        step = tl.load(dilations + i)
        for k in tl.static_range(8):
            near = _neighbour(pixel, step, k, width, bottom, right)
            cost = _unlikeness(red, pixel, near, r) + _unlikeness(green, pixel, near, g)
            cost = (cost + _unlikeness(blue, pixel, near, b)) / 3.0
            weight = tl.exp(least - cost) / total + tl.load(position + 8 * i + k)
            tl.store(target, weight)
            target += size


@_jit
def _average(
    weights, maps, dilations, extent, refined, num_maps, height, width, num_dilations, groups,
    group: constexpr, block: constexpr,
):  # fmt: skip
    """One weighted sum for a block of pixels of a group of maps; groups of a block run side by side."""
    index = tl.program_id(1).to(tl.int64)
    bottom = _last(extent, index, 0, height)
    right = _last(extent, index, 1, width)
    size = height * width
    pixel = (tl.program_id(0) // groups * block + tl.arange(0, block))[None, :]
    pixel = tl.minimum(pixel, size - 1)  # unmasked, weights and maps get one layout: nothing is shuffled
    number = (tl.program_id(0) % groups * group + tl.arange(0, group))[:, None]
    planes = (index * num_maps + number) * size  # (group, 1)
    source = maps + planes
    weight = weights + index * 8 * num_dilations * size + pixel
    total = tl.zeros([group, block], dtype=tl.float32)
    for i in range(num_dilations):
        step = tl.load(dilations + i)
        for k in tl.static_range(8):
            near = _neighbour(pixel, step, k, width, bottom, right)
            total += tl.load(weight) * tl.load(source + near, mask=number < num_maps, other=0.0)
            weight += size
    tl.store(refined + planes + pixel, total, mask=number < num_maps)
