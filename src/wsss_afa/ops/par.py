"""Pixel-adaptive refinement (AFA, section 3.4, equations 8 to 10).

A map is smoothed over 8 neighbours at several dilations, weighted by likeness of colour and by distance, and
again. No tensor of all neighbours of all maps is built: neighbours are shifted views of one padded map, and
their weighted sum is accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError

_OFFSETS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


class PixelAdaptiveRefinement(nn.Module):
    """Refine maps towards the edges of their image.

    Args:
        num_iter: iterations; the released program runs 10 (VOC) and 15 (COCO), the paper 15.
        dilations: distances of the 8-neighbourhoods, in pixels of the image given.
        color_width: w1, width of both kernels in standard deviations of the neighbourhood.
        position_weight: w2, weight of the distance kernel against the colour kernel.

    Examples:
        Half of a bright square is marked; five iterations later so is the other half, and the dark is not:

        >>> image = torch.zeros(1, 3, 8, 8)
        >>> image[..., 2:6, 2:6] = 1
        >>> maps = torch.zeros(1, 1, 8, 8)
        >>> maps[..., 2:6, 2:4] = 1
        >>> refined = PixelAdaptiveRefinement(num_iter=5, dilations=[1, 2])(image, maps)
        >>> refined[0, 0, 3].gt(0.3).int()
        tensor([0, 0, 1, 1, 1, 1, 0, 0], dtype=torch.int32)
    """

    position_kernel: Tensor

    def __init__(
        self, num_iter: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
        color_width: float = 0.3, position_weight: float = 0.01,
    ):  # fmt: skip
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise UserError(f"dilations={list(dilations)}: need one or more distances of at least 1 pixel")
        self.num_iter = num_iter
        self.color_width = color_width
        self.offsets = [(d * dy, d * dx) for d in dilations for dy, dx in _OFFSETS]
        self.reach = max(dilations)
        distance = torch.tensor([float(dy**2 + dx**2) for dy, dx in self.offsets]).sqrt()
        kernel = -((distance / (distance.std() + 1e-8) / color_width) ** 2)
        self.register_buffer("position_kernel", position_weight * kernel.softmax(0), persistent=False)

    def forward(self, image: Tensor, maps: Tensor, extent: Tensor | None = None) -> Tensor:
        """Return ``maps`` (B, G, H, W) of any range refined; a constant c becomes c · 1.01^num_iter.

        Half precision is computed, and returned, as float32. The result is linear in the maps.

        Args:
            image: (B, 3, H, W) RGB in [0, 1]; gets no gradient.
            extent: (B, 2) int64, height and width of the part of each canvas, from the top left, that is
                image: its border is replicated instead of the canvas's. None: the whole canvas.
        """
        image, maps = (x if x.dtype == torch.float64 else x.float() for x in (image, maps))
        border = self._border(image, extent)
        weights = torch.split(self.kernel(image, border), 1, dim=1)  # P of (B, 1, H, W)
        maps = maps.clone()
        for _ in range(self.num_iter):
            neighbours = self._neighbours(maps, border)  # of a copy
            maps = torch.zeros_like(maps) if maps.requires_grad else maps.zero_()
            for weight, neighbour in zip(weights, neighbours, strict=True):
                maps.addcmul_(weight, neighbour)
        return maps

    @torch.no_grad()
    def kernel(self, image: Tensor, border: Tensor | None = None) -> Tensor:
        """Weights of the P neighbours of each pixel, (B, P, H, W); they sum to 1 + ``position_weight``."""
        count = len(self.offsets)
        weights = image.new_zeros(image.shape[0], count, *image.shape[-2:])
        for channel in torch.split(image, 1, dim=1):  # (B, 1, H, W)
            neighbours = self._neighbours(channel, border)
            mean, variance, difference = torch.zeros_like(channel), torch.zeros_like(channel), channel.clone()
            for neighbour in neighbours:
                mean += neighbour
            mean /= count
            for neighbour in neighbours:
                torch.sub(neighbour, mean, out=difference)
                variance.addcmul_(difference, difference)
            width = variance.div_(count - 1).sqrt_().add_(1e-8).mul_(self.color_width)
            for weight, neighbour in zip(torch.split(weights, 1, dim=1), neighbours, strict=True):
                torch.sub(channel, neighbour, out=difference).div_(width)
                weight.addcmul_(difference, difference, value=1 / image.shape[1])
        torch.sub(weights.amin(1, keepdim=True), weights, out=weights).exp_()
        weights /= weights.sum(1, keepdim=True)
        return weights.add_(self.position_kernel.to(image)[:, None, None])

    def _border(self, image: Tensor, extent: Tensor | None) -> Tensor | None:
        """Where each pixel of the padded canvas is read, as positions (B, 1, H'·W') of the canvas.

        None without an extent: torch pads faster than it gathers.
        """
        if extent is None:
            return None
        near = []
        for axis in (0, 1):
            position = torch.arange(-self.reach, image.shape[2 + axis] + self.reach, device=image.device)
            near.append(torch.minimum(position.clamp(min=0), extent[:, axis, None] - 1))  # (B, H') or (B, W')
        rows, columns = near
        return (rows[:, :, None] * image.shape[-1] + columns[:, None, :]).flatten(1)[:, None]

    def _neighbours(self, maps: Tensor, border: Tensor | None) -> list[Tensor]:
        """Views of a copy of ``maps`` shifted by every offset, borders replicated."""
        (height, width), reach = maps.shape[-2:], self.reach
        if border is None:
            padded = F.pad(maps, (reach,) * 4, mode="replicate")
        else:
            gathered = maps.flatten(2).gather(2, border.expand(-1, maps.shape[1], -1))
            padded = gathered.view(*maps.shape[:2], height + 2 * reach, width + 2 * reach)
        return [
            padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
            for dy, dx in self.offsets
        ]
