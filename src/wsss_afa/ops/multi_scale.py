"""Segmentation over scales and mirror images, with a dense CRF on top: an evaluation's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.dense_crf import DenseCRF
from wsss_afa.ops.images import resize
from wsss_afa.types import MEAN, STD


class Segmenter(Protocol):
    """What segmentation is asked of: a method, or anything that answers the same."""

    def segment(self, image: Tensor) -> Tensor:
        """Return the logits (B, K, h, w), on any grid, of a normalised image (B, 3, H, W)."""
        ...


class MultiScaleSegmentation(nn.Module):
    """Merge the logits of rescaled and mirrored images, and refine what comes out.

    Every map is resized to the image's own size first. A map and its un-mirrored twin merge to their maximum.

    Args:
        name: of the protocol, for tables and files.
        scales: factors of the image's sides, after ``long_side``.
        mirror: also pass the mirror image at each scale.
        fusion: of the scales: ``max`` or ``sum`` of logits, or ``mean`` of probabilities.
        long_side: pixels to which the longer side is resized first; None keeps the image's size.
        crf: refines the probabilities; None leaves them.
        mean: of the image's normalisation, 0…255.
        std: of the image's normalisation, 0…255.

    Raises:
        UserError: A setting is out of its range.
    """

    def __init__(
        self,
        name: str = "plain", scales: Sequence[float] = (1.0,), mirror: bool = False, fusion: str = "max",
        long_side: int | None = None, crf: DenseCRF | None = None, mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ):  # fmt: skip
        super().__init__()
        if not scales or min(scales) <= 0:
            given = f"protocol.scales={list(scales)}"
            raise UserError(f"{given}: need one or more positive factors, such as [1.0, 0.5]")
        if fusion not in ("max", "sum", "mean"):
            raise UserError(f"protocol.fusion={fusion} is not known; need max, sum or mean")
        if long_side is not None and long_side < 1:
            raise UserError(f"protocol.long_side={long_side}: need pixels, or null for the image's own size")
        self.name, self.scales, self.mirror, self.fusion = name, tuple(scales), mirror, fusion
        self.long_side, self.crf = long_side, crf
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, net: Segmenter, image: Tensor) -> Tensor:
        """Return the probabilities (B, K, H, W) of an image (B, 3, H, W), after the CRF if there is one."""
        probabilities = self.probabilities(net, image)
        return probabilities if self.crf is None else self.refine(image, probabilities)

    @torch.no_grad()
    def probabilities(self, net: Segmenter, image: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the probabilities (B, K, H, W) before any CRF, float32.

        Args:
            net: makes the logits.
            image: (B, 3, H, W) normalised.
            known: logits of ``image`` itself where a pass has made them already.
        """
        size = image.shape[-2:]
        base = 1.0 if self.long_side is None else self.long_side / max(size)
        merged = None
        for factor in (base * scale for scale in self.scales):
            scaled = image if factor == 1 else resize(image, [int(factor * side) for side in size])
            passed = known if known is not None and factor == 1 else net.segment(scaled)
            logits = resize(passed.float(), size)
            if self.mirror:
                logits = torch.maximum(logits, resize(net.segment(scaled.flip(-1)).flip(-1).float(), size))
            if self.fusion == "mean":
                logits = logits.softmax(dim=1)
            if merged is None:
                merged = logits
            else:
                merged = torch.maximum(merged, logits) if self.fusion == "max" else merged + logits
        assert merged is not None
        return merged / len(self.scales) if self.fusion == "mean" else merged.softmax(dim=1)

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
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = [size, f"scale{'s' * (len(self.scales) > 1)} {scales}"]
        parts += ["mirror"] * self.mirror + [f"{self.fusion} over scales"] * (len(self.scales) > 1)
        parts += [f"CRF {self.crf.extra_repr()}"] if self.crf is not None else ["no CRF"]
        return f"{self.name} ({'; '.join(parts)})"
