"""Small crops where an activation map is unsure, and whether they show an object (ToCo, section 3.3).

Shapes: L side of a crop in pixels, n crops of each image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.draws import draw_cells


def certainty(score: Tensor, low: float, high: float) -> Tensor:
    """Scores (B, H, W) as 0, background, up to ``low``; 2, an object, from ``high`` on; else 1: int64.

    Examples:
        >>> certainty(torch.tensor([[[0.2, 0.5, 0.7]]]), low=0.25, high=0.7)
        tensor([[[0, 1, 2]]])
    """
    return (score > low).long() + (score >= high).long()


def corner_candidates(mask: Tensor, side: int, count: int) -> Tensor:
    """Top-left corners of crops whose middle is no certain object: (B, H − L, W − L) bool.

    The mask (B, H, W) is that of `certainty`. An image with fewer than ``count`` candidates has all corners.
    """
    height, width, half = mask.shape[-2], mask.shape[-1], side // 2
    free = mask[:, half : height - side + half, half : width - side + half] <= 1
    enough = free.sum((-2, -1), keepdim=True) >= count
    return free | ~enough


def cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Crops (B, n, G, L, L) of images (B, G, H, W), whose top-left corners (B, n, 2) are rows and columns."""
    steps = torch.arange(side, device=images.device)
    rows, columns = ((corners[..., axis, None] + steps) for axis in (0, 1))  # (B, n, L)
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    crops = images.movedim(1, -1)[batch, rows[..., :, None], columns[..., None, :]]  # (B, n, L, L, G)
    return crops.movedim(-1, 2)


class LocalCrops(nn.Module):
    """Where local crops lie, and which of them are background.

    Args:
        count: n.
        side: L; a multiple of the backbone's patches.
        background_share: a crop whose mean of `certainty` is at most this is a negative.
    """

    def __init__(self, count: int = 8, side: int = 96, background_share: float = 0.2):
        super().__init__()
        self.count, self.side, self.background_share = count, side, background_share

    def corners(self, mask: Tensor, seeds: Tensor) -> Tensor:
        """Draw top-left corners (B, n, 2) on a mask (B, H, W) of `certainty`, by a seed for each image (B,).

        Raises:
            UserError: the mask has no room for so many crops.
        """
        room = (mask.shape[-2] - self.side, mask.shape[-1] - self.side)
        if min(room) < 1 or room[0] * room[1] < self.count:
            got = f"local crops of {self.side} pixels in images of {mask.shape[-2]}×{mask.shape[-1]}"
            raise UserError(f"{got}: need larger images; raise data.crop_size or lower method.crops.side")
        flat = draw_cells(corner_candidates(mask, self.side, self.count), seeds, self.count)
        return torch.stack([flat // room[1], flat % room[1]], dim=-1)

    def is_object(self, mask: Tensor, corners: Tensor) -> Tensor:
        """Which crops are not background, (B, n) bool."""
        return self.mask_means(mask, corners) > self.background_share

    def mask_means(self, mask: Tensor, corners: Tensor) -> Tensor:
        """Mean of the mask over each crop, (B, n)."""
        return cut(mask[:, None], corners, self.side).float().mean((-3, -2, -1))
