"""Images and maps as tensors: bilinear resizing, and pixels back from normalised values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, G, h, w) to ``size`` (H, W); images as well."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def to_rgb(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo the normalisation, truncate to 8 bits and scale to [0, 1], as the released program does.

    Args:
        image: (B, 3, H, W) normalised.
        mean: of the channels, 0…255.
        std: of the channels, 0…255.
    """
    channels = [image[:, i].float() * std[i] + mean[i] for i in range(3)]
    return torch.stack(channels, dim=1).clamp_(0, 255).to(torch.uint8) / 255.0
