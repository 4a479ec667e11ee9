"""Class activation maps over scales and mirror images (AFA, section 3.1 and 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.images import check_scales, resize, scaled_size
from wsss_afa.types import Activation


class Localizer(Protocol):
    """What activation maps are asked of: a method's network, or anything that answers the same."""

    def activate(self, image: Tensor) -> Activation:
        """Return the raw map (B, C, h, w) and tokens of a normalised image (B, 3, H, W)."""


def normalize_cam(cam: Tensor) -> Tensor:
    """Shift and scale each of the maps (B, C, H, W) to [0, 1]: (x − min) / (max − min + 1e-5).

    Examples:
        >>> normalize_cam(torch.tensor([[[[-2.0, 0.0, 2.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    cam = cam - cam.amin((-2, -1), keepdim=True)
    return cam / (cam.amax((-2, -1), keepdim=True) + 1e-5)


class MultiScaleCAM(nn.Module):
    """Sum over scales of ReLU(max(map, un-mirrored map of the mirror image)), normalised.

    The network keeps the mode it is in (the released program leaves drop path on while training). Mirrored
    and plain images are passed one after the other, which halves the peak of memory.

    Args:
        scales: factors of the image's sides; the result's tokens are those of the largest one, un-mirrored.
        mirror: also pass the mirror image at each scale.
        rectify: whether values below 0 become 0 before scales are added.
        precision: ``bf16`` passes images under autocast to bfloat16, whatever the rest of a step runs in. It
            is faster on GPUs, and on processors with instructions for it (AMX); on others it is slower. None
            leaves the precision to the Trainer. Maps are merged in float32.

    Raises:
        UserError: No scale is given, or one that `check_scales` refuses, or the precision is not known.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.5, 1.5), mirror: bool = True, rectify: bool = True,
        precision: str | None = None,
    ):  # fmt: skip
        super().__init__()
        if precision not in (None, "bf16"):
            raise UserError(f"cam.precision={precision} is not known; need bf16, or null for the Trainer's")
        check_scales("cam.scales", scales)
        self.scales = tuple(scales)
        self.mirror, self.rectify, self.precision = mirror, rectify, precision

    @torch.no_grad()
    def forward(
        self, net: Localizer, image: Tensor, known: Activation | None = None, channels: Tensor | None = None
    ) -> Activation:
        """Return the merged map (B, C, H, W) in [0, 1], float32, and the largest scale's tokens.

        Args:
            net: makes the raw maps.
            image: (B, 3, H, W), normalised.
            known: the raw activation of ``image`` itself where a pass has made it already; it serves as the
                un-mirrored map of scale 1.
            channels: (B, G) int64 in [0, C), the maps of each image to keep, in this order; None keeps all.
        """
        size = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            scaled = image if scale == 1 else resize(image, scaled_size(size, scale))
            plain = known if known is not None and scale == 1 else self._activate(net, scaled)
            merged = resize(_select(plain.cam, channels), size)
            if self.mirror:
                mirrored = _select(self._activate(net, scaled.flip(-1)).cam, channels).flip(-1)
                merged = torch.maximum(merged, resize(mirrored, size))
            merged = merged.relu_() if self.rectify else merged
            total = merged if total is None else total + merged
            if scale == max(self.scales):
                tokens = plain.tokens
        assert total is not None
        return Activation(cam=normalize_cam(total), tokens=tokens)

    def _activate(self, net: Localizer, image: Tensor) -> Activation:
        cast: AbstractContextManager[None] = nullcontext()
        if self.precision == "bf16":
            cast = torch.autocast(image.device.type, torch.bfloat16)
        with cast:
            return net.activate(image)


def _select(cam: Tensor, channels: Tensor | None) -> Tensor:
    """The wanted channels of a raw map, float32."""
    if channels is None:
        return cam.float()
    return cam.gather(1, channels[:, :, None, None].expand(-1, -1, *cam.shape[-2:])).float()
