"""What a fixed grid of patches asks for: images of whole patches, and position embeddings for other grids.

Pure functions. h₀ and w₀ are the grid that the position embedding was trained for, h and w the image's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

FITS = ("pad", "crop", "resize")
"""Ways to bring an image to whole patches, see `fit_to_patches`."""

POSITIONS: Mapping[str, tuple[str, bool, float]] = {
    # interpolation, antialias, offset of the scale factor in cells (0: by size)
    "timm": ("bicubic", True, 0.0),
    "bicubic": ("bicubic", False, 0.0),
    "bilinear": ("bilinear", False, 0.0),
    "bicubic_scale": ("bicubic", False, 0.1),
}
"""Ways to resize position embeddings. DINOv2 and MoRe use the last: the interpolation is given the factors
(h + 0.1) / h₀ and (w + 0.1) / w₀, which puts its sampling points elsewhere than a given size does."""


def fit_to_patches(image: Tensor, patch: int, rule: str) -> Tensor:
    """Bring the sides of a normalised image (B, 3, H, W) to multiples of the patch, in pixels.

    ``pad`` adds zeros, which are the mean colour, on the right and below: the last row and column of cells
    may reach beyond the image. ``crop`` leaves incomplete cells out. ``resize`` shrinks the image to the
    whole patches that fit into it, bilinear without antialias. Under these two, an image that holds no whole
    patch is lengthened to one first.
    """
    height, width = image.shape[-2:]
    if rule == "pad":
        return F.pad(image, (0, -width % patch, 0, -height % patch))
    if min(height, width) < patch:
        return fit_to_patches(lengthen(image, patch), patch, rule)
    if rule == "crop":
        return F.pad(image, (0, -(width % patch), 0, -(height % patch)))
    size = (height // patch * patch, width // patch * patch)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def lengthen(image: Tensor, least: int) -> Tensor:
    """An image (B, 3, H, W) with sides of ``least`` pixels at least: its last row and column are repeated."""
    below, right = (max(0, least - side) for side in image.shape[-2:])
    return F.pad(image, (0, right, 0, below), mode="replicate")


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], rule: str) -> Tensor:
    """Interpolate position embeddings (1, h₀·w₀, D) of the grid ``old`` to (1, h·w, D) of the grid ``new``.

    Interpolation acts on each axis with a matrix of weights. Its gradient is then a matrix product, which
    repeats bit by bit on a GPU. No branch hangs on the sizes: an exported graph takes images of any size.
    The rule is a key of `POSITIONS`; under each of them the old grid gives the old numbers.
    """
    mode, antialias, offset = POSITIONS[rule]
    taller, wider = new[0] - old[0], new[1] - old[1]
    distance = taller * taller + wider * wider  # torch.export's file has no abs of a size
    changed = torch.sym_min(distance, 1)  # type: ignore[no-untyped-call]
    with torch.autocast(positions.device.type, enabled=False):
        grid = positions.float().reshape(1, *old, -1)  # (1, h₀, w₀, D)
        rows, columns = (
            _by_factor(o, n, n + offset * changed, mode, grid.device)
            if offset
            else _by_size(o, n, mode, antialias, grid.device)
            for o, n in zip(old, new, strict=True)
        )
        return torch.einsum("ip,jq,bpqd->bijd", rows, columns, grid).flatten(1, 2).to(positions.dtype)


def _by_size(old: int, new: int, mode: str, antialias: bool, device: torch.device) -> Tensor:
    """Weights (new, old) of interpolation to a size: what becomes of the rows of an identity matrix."""
    identity = torch.eye(old, device=device)[None, None]
    return F.interpolate(identity, size=(new, old), mode=mode, antialias=antialias)[0, 0]


def _by_factor(old: int, new: int, length: float, mode: str, device: torch.device) -> Tensor:
    """Weights (new, old) of interpolation by the factor length / old, which need not give a whole size.

    An exported graph holds `interpolate`'s own factors as constants; sampling points are computed in it.
    """
    one_hot = torch.eye(old, device=device)[None, :, :, None]  # old images of one column
    centres = (2 * torch.arange(new, device=device) + 1) / length - 1  # from border to border is -1 to 1
    points = torch.stack([torch.zeros_like(centres), centres], dim=-1)[None, :, None]  # (1, new, 1, 2): x, y
    return F.grid_sample(one_hot, points, mode, padding_mode="border", align_corners=False)[0, :, :, 0].T
