"""Bilinear resizing as the whole method has it: corners are not aligned."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, G, h, w) to ``size`` (H, W); images as well."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
