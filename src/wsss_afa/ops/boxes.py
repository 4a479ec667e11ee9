"""Bilinear resizing of a different box in every image of a batch, in one call."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_boxes(
    maps: Tensor, source: Tensor, target: Tensor, size: tuple[int, int], align_corners: bool = False
) -> Tensor:
    """Resize each image's ``source`` box into its ``target`` box on a new canvas, as if cropped first.

    Equals cropping, ``torch.nn.functional.interpolate(mode="bilinear")`` and pasting, image by image.

    Args:
        maps: (B, G, H, W).
        source: (B, 4) boxes to read, pixels of ``maps``.
        target: (B, 4) boxes to write, pixels of the new canvas.
        size: height and width of the new canvas.
        align_corners: as in ``interpolate``.

    Returns:
        (B, G, *size), 0 outside ``target``.
    """
    for axis in (0, 1):
        start, stop = source[:, 2 * axis], source[:, 2 * axis + 1]
        new_start, new_stop = target[:, 2 * axis], target[:, 2 * axis + 1]
        position = torch.arange(size[axis], device=maps.device)[None] - new_start[:, None]  # (B, S)
        length, new_length = (stop - start)[:, None], (new_stop - new_start)[:, None]
        if align_corners:
            wanted = position * ((length - 1) / (new_length - 1).clamp(min=1))
        else:
            wanted = (position + 0.5) * (length / new_length) - 0.5
        wanted = torch.minimum(wanted.clamp(min=0), (length - 1).to(wanted))
        inside = (position >= 0) & (position < new_length)
        maps = _interpolate(maps, 2 + axis, start[:, None], wanted, length) * _along(inside, 2 + axis)
    return maps


def _interpolate(maps: Tensor, dim: int, start: Tensor, wanted: Tensor, length: Tensor) -> Tensor:
    """Linear interpolation along ``dim`` at ``wanted`` (B, S), counted from ``start`` (B, 1)."""
    lower = wanted.long()
    upper = torch.minimum(lower + 1, length - 1)
    share = _along(wanted - lower, dim)
    shape = list(maps.shape)
    shape[dim] = wanted.shape[1]
    near = maps.gather(dim, _along(lower + start, dim).expand(shape))
    far = maps.gather(dim, _along(upper + start, dim).expand(shape))
    return near * (1 - share) + far * share


def _along(values: Tensor, dim: int) -> Tensor:
    """View (B, S) so that S lies along ``dim`` of a batch of maps."""
    return values[:, None, :, None] if dim == 2 else values[:, None, None, :]


def inside_box(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (B, H, W) bool of a canvas of ``size`` (H, W) that lie inside each image's box (B, 4).

    Examples:
        >>> inside_box(torch.tensor([[0, 1, 1, 3]]), (2, 3)).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)
    """
    rows = torch.arange(size[0], device=box.device)
    columns = torch.arange(size[1], device=box.device)
    inside_rows = (rows >= box[:, 0, None]) & (rows < box[:, 1, None])  # (B, H)
    inside_columns = (columns >= box[:, 2, None]) & (columns < box[:, 3, None])  # (B, W)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def cells_of(box: Tensor, stride: int) -> Tensor:
    """Boxes (B, 4) in pixels to boxes in cells of a grid: a cell is inside where its centre is.

    Examples:
        >>> cells_of(torch.tensor([[0, 96, 9, 80]]), stride=16)
        tensor([[0, 6, 1, 5]])
    """
    return ((2 * box + stride - 1) // (2 * stride)).clamp(min=0)  # ⌈(box − stride/2) / stride⌉
