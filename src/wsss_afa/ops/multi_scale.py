"""Segmentation over scales and mirror images, with a dense CRF on top: an evaluation's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.dense_crf import DenseCRF
from wsss_afa.ops.images import check_scales, resize, scaled_size
from wsss_afa.types import MEAN, STD


class Segmenter(Protocol):
    """What segmentation is asked of: a method, or anything that answers the same."""

    def segment(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, h, w), on any grid, of a normalised image (B, 3, H, W)."""
        ...


class MultiScaleSegmentation(nn.Module):
    """Merge the logits of rescaled and mirrored images, and refine what comes out.

    Maps are merged at the image's own size, or on the grid that the first scale's logits have.

    Args:
        name: of the protocol, for tables and files.
        scales: factors of the image's sides, after ``long_side`` or ``size``.
        mirror: also pass the mirror image at each scale.
        fusion: of the scales: ``max``, ``sum`` or ``mean_logits``, of logits, or ``mean`` of probabilities.
        mirror_fusion: of a map and its un-mirrored twin: ``max``, ``sum`` or ``mean`` of logits.
        long_side: pixels to which the longer side is resized first; None keeps the image's size.
        size: height and width to which the image is resized first, whatever its shape; None keeps its size.
            Scales are factors of it.
        crf: refines the probabilities; None leaves them.
        mean: of the image's normalisation, 0…255.
        std: of the image's normalisation, 0…255.
        merged_at: where maps are merged: ``image`` or ``first``, the grid of the first scale's logits.
        stepwise: scales are made of the image that ``long_side`` or ``size`` has resized, not of the image.

    Raises:
        UserError: A setting is out of its range.
    """

    whole = False
    """Whether it asks a method for more than segments, which a large image cannot give tile by tile."""

    def __init__(
        self,
        name: str = "plain", scales: Sequence[float] = (1.0,), mirror: bool = False, fusion: str = "max",
        long_side: int | None = None, crf: DenseCRF | None = None, mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD, mirror_fusion: str = "max", size: Sequence[int] | None = None,
        merged_at: str = "image", stepwise: bool = False,
    ):  # fmt: skip
        super().__init__()
        check_scales("protocol.scales", scales)
        for key, value, known in (
            ("fusion", fusion, ("max", "sum", "mean", "mean_logits")),
            ("mirror_fusion", mirror_fusion, ("max", "sum", "mean")),
            ("merged_at", merged_at, ("image", "first")),
        ):
            if value not in known:
                raise UserError(f"protocol.{key}={value} is not known; need one of {', '.join(known)}")
        if long_side is not None and long_side < 1:
            raise UserError(f"protocol.long_side={long_side}: need pixels, or null for the image's own size")
        if size is not None and (len(size) != 2 or min(size) < 1 or long_side is not None):
            given = f"protocol.size={list(size)}, protocol.long_side={long_side}"
            raise UserError(f"{given}: need height and width, or a long side, or null for both")
        self.name, self.scales, self.mirror, self.fusion = name, tuple(scales), mirror, fusion
        self.mirror_fusion, self.long_side, self.crf = mirror_fusion, long_side, crf
        self.merged_at, self.stepwise = merged_at, stepwise
        self.size = None if size is None else tuple(size)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, net: Segmenter, image: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the probabilities (B, K, H, W) as `probabilities` does, after the CRF if there is one."""
        probabilities = self.probabilities(net, image, known)
        return probabilities if self.crf is None else self.refine(image, probabilities)

    @torch.no_grad()
    def probabilities(self, net: Segmenter, image: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the probabilities (B, K, H, W) before any CRF, float32.

        Args:
            net: makes the logits.
            image: (B, 3, H, W) normalised.
            known: logits of ``image`` itself where a pass has made them already.
        """
        merged = self.merged(net, image, known)
        return merged / len(self.scales) if self.fusion == "mean" else merged.softmax(dim=1)

    def merged(
        self, net: Segmenter, image: Tensor, known: Tensor | None = None, target: Sequence[int] | None = None
    ) -> Tensor:
        """What all scales merge to, as in `probabilities`: logits, or a sum of probabilities (``mean``).

        Maps have the size ``target`` (h, w), or that of the image.
        """
        target = image.shape[-2:] if target is None else target
        merged, start = None, self.start(image)
        for size in self.sizes(image.shape[-2:]):
            scaled = start if size == tuple(start.shape[-2:]) else resize(start, size)
            passed = known if known is not None and scaled is image else net.segment(scaled)
            if self.merged_at == "image":
                grid = target
            elif merged is None:
                grid = passed.shape[-2:]
            logits = resize(passed.float(), grid)
            if self.mirror:
                twin = resize(net.segment(scaled.flip(-1)).flip(-1).float(), grid)
                logits = _merge(logits, twin, self.mirror_fusion) / (2 if self.mirror_fusion == "mean" else 1)
            if self.fusion == "mean":
                logits = logits.softmax(dim=1)
            merged = logits if merged is None else _merge(merged, logits, self.fusion)
        assert merged is not None
        merged = resize(merged, target)
        return merged / len(self.scales) if self.fusion == "mean_logits" else merged

    def start(self, image: Tensor) -> Tensor:
        """The image (B, 3, ·, ·) that scales are made of."""
        own = (image.shape[-2], image.shape[-1])
        size = (self.size or own) if self.stepwise else own
        if self.stepwise and self.long_side is not None:
            size = scaled_size(own, self.long_side / max(own))
        return image if tuple(size) == own else resize(image, size)

    def sizes(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Height and width of what is passed for an image of a size (H, W), one for each scale."""
        base = 1.0 if self.long_side is None else self.long_side / max(size)
        height, width = self.size or size
        if self.stepwise and base != 1:
            (height, width), base = scaled_size(size, base), 1.0
        return [
            (height, width) if factor == 1 else scaled_size((height, width), factor)
            for factor in (base * scale for scale in self.scales)
        ]

    def refine(self, image: Tensor, probabilities: Tensor) -> Tensor:
        """Return the CRF's probabilities (B, K, H, W), given the normalised image (B, 3, H, W)."""
        assert self.crf is not None
        mean, std = (image.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        rgb = (image * std + mean).round().clamp(0, 255).to(torch.uint8)
        refined: Tensor = self.crf(rgb, probabilities)
        return refined

    def extra_repr(self) -> str:
        """Name and settings on one line, as tables name them."""
        size = "native size" if self.long_side is None else f"long side {self.long_side} px"
        size = size if self.size is None else f"resized to {self.size[0]}×{self.size[1]} px"
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = [size, f"scale{'s' * (len(self.scales) > 1)} {scales}"]
        added = {"max": "", "sum": " added", "mean": " averaged"}[self.mirror_fusion]
        fusion = self.fusion.replace("mean_logits", "mean of logits")
        parts += [f"mirror{added}"] * self.mirror + [f"{fusion} over scales"] * (len(self.scales) > 1)
        parts += ["merged on the first scale's grid"] * (self.merged_at == "first")
        parts += [f"CRF {self.crf.extra_repr()}"] if self.crf is not None else ["no CRF"]
        return f"{self.name} ({'; '.join(parts)})"


def _merge(one: Tensor, other: Tensor, fusion: str) -> Tensor:
    """Of a map and its twin, or of scales; for a mean over scales the sum is divided at the end."""
    if fusion == "max":
        return torch.maximum(one, other)
    return one + other
