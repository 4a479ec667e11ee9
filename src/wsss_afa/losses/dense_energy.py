"""The dense-energy regulariser (Tang et al., ECCV 2018; AFA, section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.boxes import inside_box
from wsss_afa.ops.gaussian_sum import gaussian_sum
from wsss_afa.ops.images import scaled_size
from wsss_afa.ops.permutohedral import lattice
from wsss_afa.types import IGNORE_INDEX

LATTICE_SCALE = 2**5 / (2**5 + 1)
"""Of the lattice's sums over five features (Adams et al., 2010)."""


class DenseEnergyLoss(nn.Module):
    """Neighbours of like colour should be segmented alike (Tang et al., ECCV 2018; AFA, section 3.5).

    −weight/B · Σ_ij gate_i K_ij S_iᵀ S_j with K a Gaussian of position and colour and
    gate_i = max(0, inside_i − max_k S_ik), 1 where the pseudo label is 255. Images and probabilities are
    halved first. The gate has no gradient and the energy's gradient is −2 · gate · (K S), as in the released
    program.

    Args:
        weight: of the energy, which grows with the number of pairs.
        sigma_position: standard deviation in pixels of the full image.
        sigma_color: standard deviation in RGB, 0…255 scale.
        scale: factor of the image's sides.
        chunk: pixels of a tile of `gaussian_sum`; None takes 64 on a CPU and 1024 elsewhere.
        kernel: ``exact``, the sum over all pairs of pixels; or ``lattice``, its approximation on the
            permutohedral lattice, which is what the released programs compute, and much faster on a CPU.

    Raises:
        UserError: The kernel is not known.
    """

    def __init__(
        self, weight: float = 1e-7, sigma_position: float = 100.0, sigma_color: float = 15.0,
        scale: float = 0.5, chunk: int | None = None, kernel: str = "exact",
    ):  # fmt: skip
        super().__init__()
        if kernel not in ("exact", "lattice"):
            raise UserError(f"dense_energy.kernel={kernel} is not known; need exact or lattice")
        self.weight, self.scale, self.chunk, self.kernel = weight, scale, chunk, kernel
        self.sigma_position, self.sigma_color = sigma_position, sigma_color

    def forward(self, logits: Tensor, rgb: Tensor, label: Tensor, box: Tensor) -> Tensor:
        """Return the energy, a scalar ≤ 0, of segmentation logits (B, K, h, w).

        The image is (B, 3, H, W) in [0, 1], its pseudo label (B, H, W) int64. Pixels outside the box (B, 4),
        the image part of the crop, have no energy.
        """
        size = scaled_size(rgb.shape[-2:], self.scale)
        full = F.interpolate(logits.float(), size=rgb.shape[-2:], mode="bilinear", align_corners=False)
        probability = F.interpolate(full.softmax(1), size=size, mode="bilinear", align_corners=False)
        colour = F.interpolate(255.0 * rgb, size=size, mode="nearest")
        inside = inside_box(box, (rgb.shape[-2], rgb.shape[-1]))
        roi = F.interpolate(inside[:, None].to(rgb), size=size, mode="nearest")
        unknown = F.interpolate((label == IGNORE_INDEX)[:, None].to(rgb), size=size, mode="nearest") > 0
        masked = probability * roi
        with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
            gate = (roi - probability.amax(1, keepdim=True)).masked_fill(unknown, 1.0).clamp_(min=0)
            smooth = gate * self._filter(colour, masked, roi > 0)
        energy = -(masked * smooth).sum() / len(rgb)
        return self.weight * (2 * energy - energy.detach())  # its value, and twice its partial gradient

    def _filter(self, colour: Tensor, maps: Tensor, inside: Tensor) -> Tensor:
        """K applied to maps (B, K, h, w) that are 0 where not inside (B, 1, h, w), at the pixels inside."""
        sides = [torch.arange(side, device=maps.device) for side in maps.shape[-2:]]
        position = torch.cartesian_prod(*sides).to(maps) / (self.sigma_position * self.scale)  # (n, 2)
        smooth = torch.zeros_like(maps.flatten(2).mT)  # (B, n, K)
        for one, pixels, values, within in zip(smooth, colour, maps, inside, strict=True):
            features = torch.cat([position, pixels.flatten(1).T / self.sigma_color], dim=1)  # (n, 5)
            flat = values.flatten(1).T
            if maps.device.type != "cpu":  # a GPU would wait for the pixels to be counted
                one.copy_(self._sum(features, flat))
            elif len(chosen := within.flatten().nonzero()[:, 0]):
                one[chosen] = self._sum(features[chosen], flat[chosen])
        return smooth.mT.reshape_as(maps)

    def _sum(self, features: Tensor, values: Tensor) -> Tensor:
        """K applied to the values (n, K) of pixels with features (n, 5)."""
        if self.kernel == "lattice":
            return LATTICE_SCALE * lattice(features.T.float())(values.float()).to(values)
        return gaussian_sum(features, values, self.chunk or (64 if values.device.type == "cpu" else 1024))
