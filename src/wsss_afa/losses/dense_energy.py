"""The dense-energy regulariser (Tang et al., ECCV 2018; AFA, section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.ops.boxes import inside_box
from wsss_afa.ops.images import scaled_size
from wsss_afa.types import IGNORE_INDEX


class DenseEnergyLoss(nn.Module):
    """Neighbours of like colour should be segmented alike (Tang et al., ECCV 2018; AFA, section 3.5).

    −weight/B · Σ_ij gate_i K_ij S_iᵀ S_j with K a Gaussian of position and colour and
    gate_i = max(0, inside_i − max_k S_ik), 1 where the pseudo label is 255. Images and probabilities are
    halved first. The kernel is summed over all pairs, in chunks; the gate has no gradient and the energy's
    gradient is −2 · gate · (K S), as in the released program.

    Args:
        weight: of the energy, which grows with the number of pairs.
        sigma_position: standard deviation in pixels of the full image.
        sigma_color: standard deviation in RGB, 0…255 scale.
        scale: factor of the image's sides.
        chunk: pixels whose kernel row is held at once.
    """

    def __init__(
        self, weight: float = 1e-7, sigma_position: float = 100.0, sigma_color: float = 15.0,
        scale: float = 0.5, chunk: int = 512,
    ):  # fmt: skip
        super().__init__()
        self.weight, self.scale, self.chunk = weight, scale, chunk
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
        with torch.no_grad():
            gate = (roi - probability.amax(1, keepdim=True)).masked_fill(unknown, 1.0).clamp_(min=0)
            smooth = gate * self._filter(colour, masked)
        energy = -(masked * smooth).sum() / len(rgb)
        return self.weight * (2 * energy - energy.detach())  # its value, and twice its partial gradient

    def _filter(self, colour: Tensor, maps: Tensor) -> Tensor:
        """K applied to maps (B, K, h, w), exactly."""
        sides = [torch.arange(side, device=maps.device) for side in maps.shape[-2:]]
        position = torch.cartesian_prod(*sides).T.to(maps) / (self.sigma_position * self.scale)  # (2, n)
        features = torch.cat(
            [position.expand(len(maps), -1, -1), colour.flatten(2) / self.sigma_color], dim=1
        ).mT.contiguous()  # (B, n, 5)
        features = features - features.mean(1, keepdim=True)  # smaller numbers, smaller rounding
        half_norm = features.square().sum(-1) / 2  # (B, n)
        values = maps.flatten(2).mT  # (B, n, K)
        rows = []
        chunks = (torch.split(each, self.chunk, 1) for each in (features, half_norm))
        for part, part_norm in zip(*chunks, strict=True):
            offset = -(part_norm[:, :, None] + half_norm[:, None, :])
            rows.append(torch.baddbmm(offset, part, features.mT).exp_() @ values)
        return torch.cat(rows, dim=1).mT.reshape_as(maps)
