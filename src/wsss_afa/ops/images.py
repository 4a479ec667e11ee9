"""Images and maps as tensors: bilinear resizing, and pixels back from normalised values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_afa.errors import UserError

_MAX_SCALE = 16  # a mistyped factor would ask for terabytes


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, G, h, w) to ``size`` (H, W); images as well."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def scaled_size(size: Sequence[int], factor: float) -> tuple[int, int]:
    """Sides (H, W) times the factor, cut to whole pixels, of which there is one at least."""
    height, width = (max(1, int(factor * side)) for side in size)
    return height, width


def check_scales(name: str, scales: Sequence[float]) -> None:
    """Raise a UserError, with the setting's name, for no scales or one outside (0, 16]."""
    if not scales or not all(0 < scale <= _MAX_SCALE for scale in scales):
        need = f"need one or more factors above 0 and up to {_MAX_SCALE}, such as [1.0, 0.5]"
        raise UserError(f"{name}={list(scales)}: {need}")


def to_rgb(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Image (B, 3, H, W) in [0, 1], truncated to 8 bits as in the released program, of a normalised one.

    ``mean`` and ``std`` of the channels are in 0…255 units.
    """
    return _pixels(image, mean, std).clamp_(0, 255).to(torch.uint8) / 255.0


def denormalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Image (B, 3, H, W), in [0, 1] where pixels were, of a normalised one: `to_rgb` without truncation."""
    return _pixels(image, mean, std) / 255.0


def _pixels(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = [image[:, i].float() * std[i] + mean[i] for i in range(3)]
    return torch.stack(channels, dim=1)
