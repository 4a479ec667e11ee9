"""Activation map → scores of background and classes → PAR → label (AFA, section 3.4; ToCo has the same)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.boxes import resize_boxes
from wsss_afa.ops.images import resize
from wsss_afa.ops.labels import OwnClasses, best_class, class_scores, ignore_outside, merge_thresholds
from wsss_afa.ops.par import PixelAdaptiveRefinement


class RefinedLabels(nn.Module):
    """Refine class scores with the image's pixels, and merge the labels of two background scores.

    Args:
        refine: PAR.
        low: β_l, background score below which pixels are background.
        high: β_h, background score above which pixels are foreground.
        downscale: factor by which images are reduced before refinement.

    Raises:
        UserError: the background scores are not ascending numbers in [0, 1].
    """

    def __init__(self, refine: PixelAdaptiveRefinement, low: float, high: float, downscale: int = 2):
        super().__init__()
        if not 0 <= low <= high <= 1:
            raise UserError(f"thresholds low={low}, high={high}: need 0 ≤ low ≤ high ≤ 1")
        self.refine = refine
        self.backgrounds = (low, high)
        self.downscale = downscale

    def forward(self, rgb: Tensor, cam: Tensor, classes: OwnClasses, box: Tensor) -> Tensor:
        """Return the refined label (B, H, W) int64 in [0, C] or 255, which stands outside the box (B, 4).

        The image is (B, 3, H, W) in [0, 1], the activation map (B, C, H, W) in [0, 1].
        """
        return self.label(self.maps(rgb, cam, classes), classes, box)

    def maps(
        self, rgb: Tensor, cam: Tensor, classes: OwnClasses, backgrounds: Sequence[float] | None = None
    ) -> list[Tensor]:
        """PAR over the whole crop of the scores of each background score, each (B, G, H, W).

        ``backgrounds`` are low and high unless others are given.
        """
        size, small = cam.shape[-2:], self._reduce(cam)
        backgrounds = backgrounds or self.backgrounds
        scores = stacked_scores(resize(cam, small), classes, backgrounds)
        refined = resize(self.refine(resize(rgb, small), scores), size)
        return list(refined.chunk(len(backgrounds), dim=1))

    def maps_in_box(self, rgb: Tensor, maps: Sequence[Tensor], box: Tensor) -> list[Tensor]:
        """PAR inside each image's box alone, of maps on any grid: each (B, G, H, W), 0 outside the box."""
        size, small = (rgb.shape[-2], rgb.shape[-1]), self._reduce(rgb)
        sides = torch.stack([box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]], dim=1)
        extent = (sides // self.downscale).clamp(min=1)
        corner = torch.stack([z := torch.zeros_like(box[:, 0]), extent[:, 0], z, extent[:, 1]], dim=1)
        full = resize(torch.cat(list(maps), dim=1), size)
        crop = resize_boxes(full, box, corner, small, align_corners=True)
        refined = self.refine(resize_boxes(rgb, box, corner, small), crop, extent)
        return list(resize_boxes(refined, corner, box, size).chunk(len(maps), dim=1))

    def label(self, maps: Sequence[Tensor], classes: OwnClasses, box: Tensor) -> Tensor:
        """Merge the maps of both thresholds (low, high) to a label (B, H, W), 255 outside the box."""
        low, high = (best_class(scores, classes) for scores in maps)
        return ignore_outside(merge_thresholds(low, high), box)

    def _reduce(self, image: Tensor) -> tuple[int, int]:
        return max(1, image.shape[-2] // self.downscale), max(1, image.shape[-1] // self.downscale)


def stacked_scores(cam: Tensor, classes: OwnClasses, backgrounds: Sequence[float]) -> Tensor:
    """Scores of one background score after the other, (B, len(backgrounds)·G, h, w)."""
    return torch.cat([class_scores(cam, classes, beta) for beta in backgrounds], dim=1)
