"""Segmentation from localization maps of predicted classes: what MoRe publishes (AAAI 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wsss_afa.errors import UserError
from wsss_afa.ops.cam import MultiScaleCAM
from wsss_afa.ops.dense_crf import DenseCRF
from wsss_afa.ops.images import resize
from wsss_afa.ops.multi_scale import MultiScaleSegmentation
from wsss_afa.types import MEAN, STD, Activation

_LEAST = 1e-5  # a score of 0 has no logarithm


class LocalizingNet(Protocol):
    """What localization maps and classes are asked of: a method, or anything that answers the same."""

    def localize(self, image: Tensor) -> Activation:
        """Raw localization maps (B, C, h, w) of a normalised image (B, 3, H, W)."""

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, C) and segmentation logits (B, K, h, w)."""


class Localized:
    """A network whose activation is its localization map."""

    def __init__(self, net: LocalizingNet):
        self.activate = net.localize


class LocalizationSegmentation(MultiScaleSegmentation):
    """Scores of background and of the predicted classes, from localization maps of scales and mirror images.

    An image is resized to ``size`` first. Maps are merged as `MultiScaleCAM` does without rectifying, and
    those of classes that are not predicted are left out; background has 1 minus the largest of the others.

    Args:
        name: of the protocol, for tables and files.
        scales: factors of the sides of ``size``.
        mirror: also pass the mirror image at each scale.
        size: height and width to which the image is resized first.
        predicted: which classes an image has: ``classifier``, those of a positive class logit, or else those
            that the segmentation shows; ``segmentation``, the other way round.
        min_cells: cells of the segmentation's grid that a class it shows has at least.
        crf: refines the scores; None leaves them.
        mean: of the image's normalisation, 0…255.
        std: of the image's normalisation, 0…255.

    Raises:
        UserError: a setting is out of its range.
    """

    whole = True

    def __init__(
        self,
        name: str, scales: Sequence[float], mirror: bool, size: Sequence[int], predicted: str, min_cells: int,
        crf: DenseCRF | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD,
    ):  # fmt: skip
        super().__init__(name, scales, mirror, crf=crf, mean=mean, std=std, size=size)
        if predicted not in ("classifier", "segmentation"):
            raise UserError(f"protocol.predicted={predicted} is not known; need classifier or segmentation")
        self.predicted, self.min_cells = predicted, min_cells
        self.cam = MultiScaleCAM(scales, mirror, rectify=False)

    @torch.no_grad()
    def probabilities(self, net: LocalizingNet, image: Tensor, known: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Scores (B, K, H, W) in [1e-5, 1] before any CRF, float32; a pixel's need not sum to 1.

        Raises:
            UserError: the network has no localization maps.
        """
        if not hasattr(net, "localize"):
            raise UserError(
                f"protocol={self.name} needs localization maps, which {type(net).__name__} does not have: "
                "take a checkpoint of method=more, or another protocol"
            )
        squashed = resize(image, self.size)  # type: ignore[arg-type]
        maps = resize(self.cam(Localized(net), squashed).cam, image.shape[-2:])
        maps = maps * self.classes(net, squashed)[:, :, None, None]
        return torch.cat([1 - maps.amax(1, keepdim=True), maps], dim=1).clamp(min=_LEAST)

    def classes(self, net: LocalizingNet, image: Tensor) -> Tensor:
        """Classes (B, C) bool that the images are said to have."""
        logits, segments = net.answer(image)
        best = segments.argmax(1).flatten(1)  # (B, n)
        ids = torch.arange(1, logits.shape[1] + 1, device=image.device)
        shown = (best[:, :, None] == ids).sum(1) >= self.min_cells
        first, other = (logits > 0, shown) if self.predicted == "classifier" else (shown, logits > 0)
        return torch.where(first.any(1, keepdim=True), first, other)

    def extra_repr(self) -> str:
        """Name and settings on one line, as tables name them."""
        assert self.size is not None
        size = f"resized to {self.size[0]}×{self.size[1]} px"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = [size, f"localization maps of scales {scales}", *["mirror"] * self.mirror]
        parts += [f"classes of the {self.predicted}"]
        parts += [f"CRF {self.crf.extra_repr()}"] if self.crf is not None else ["no CRF"]
        return f"{self.name} ({'; '.join(parts)})"
