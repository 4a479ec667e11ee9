"""Fully connected conditional random field by mean field (Krähenbühl and Koltun, NeurIPS 2011).

Every pixel is tied to every other by two Gaussian kernels, one over positions and one over positions and
colours; pixels that a kernel ties are drawn to the same class (Potts). Equation 4 with the self-message kept:

    Q_i ← softmax_k(log p_i + Σ_m w_m Σ_j K̂^m_ij Q_j),   K̂ = D^{-1/2} K D^{-1/2},   D = diag(K 1)

The sums are made on the permutohedral lattice, as in the paper, or exactly.

Legend: N = H·W pixels, d features of a kernel; B, K, H, W as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.errors import UserError
from wsss_afa.ops.permutohedral import PermutohedralLattice, lattice

FLOOR = 1e-5
"""Least probability; smaller ones are raised to it, or no neighbour could ever overrule a 0."""

_ALIGNMENT = 8  # fused attention takes queries, keys and values of one width, on GPUs a multiple of this


class ExactKernel(NamedTuple):
    """The kernel K_ij = exp(−|f_i − f_j|² / 2), times factors, without ever holding its N² entries.

    Fused attention yields its rows divided by their sums: with q_i = (f_i, −|f_i|²/2, 1) and
    k_j = (f_j, 1, −|f_j|²/2), q_i·k_j is the kernel's logarithm. Made by `exact_kernel`.
    """

    query: Tensor  # (N, d + 2)
    key: Tensor  # (N, d + 2)
    before: Tensor  # (N, 1) factor of the values
    after: Tensor  # (N, 1) factor of the result

    def __call__(self, values: Tensor) -> Tensor:
        """Return ``values`` (N, K) filtered."""
        return _attend(self.query, self.key, values * self.before).mul_(self.after)

    def scaled(self, factor: Tensor) -> ExactKernel:
        """The kernel with rows and columns multiplied by ``factor`` (N)."""
        return self._replace(before=self.before * factor[:, None], after=self.after * factor[:, None])


def exact_kernel(features: Tensor) -> ExactKernel:
    """The kernel of ``features`` (d, N), in its standard deviations.

    The sums of rows come from attention, too: a key more whose logit is 0 gets the weight 1 / (sum + 1).
    """
    features = (features - features.mean(1, keepdim=True)).T
    ones, norm = torch.ones_like(features[:, :1]), features.square().sum(1, keepdim=True) / -2
    query, key = torch.cat([features, norm, ones], 1), torch.cat([features, ones, norm], 1)
    marker = F.pad(torch.zeros_like(ones), (0, 0, 0, 1))
    marker[-1] = 1
    total = 1 / _attend(query, F.pad(key, (0, 0, 0, 1)), marker) - 1
    return ExactKernel(query, key, ones, total)


def _attend(query: Tensor, key: Tensor, values: Tensor) -> Tensor:
    """softmax(query · keyᵀ) · values in float32, in channels for which torch never stores the matrix."""
    width = max(query.shape[1], values.shape[1])
    width += -width % _ALIGNMENT
    query, key, padded = (F.pad(x, (0, width - x.shape[1]))[None, None] for x in (query, key, values))
    with torch.autocast(query.device.type, enabled=False):
        averaged = F.scaled_dot_product_attention(query, key, padded, scale=1.0)
    return averaged[0, 0, :, : values.shape[1]]


Kernel = PermutohedralLattice | ExactKernel
_KERNELS: dict[str, Callable[[Tensor], Kernel]] = {"lattice": lattice, "exact": exact_kernel}


class DenseCRF(nn.Module):
    """Sharpen class probabilities along the edges of their image. Runs where its input is; no gradient.

    Args:
        num_iter: mean-field iterations; 0 only raises small probabilities and scales their sum to 1.
        gaussian_sxy: width of the kernel over positions, in pixels.
        gaussian_compat: its weight.
        bilateral_sxy: width of the kernel over positions and colours along positions, in pixels.
        bilateral_srgb: its width along colours, in 0…255 units.
        bilateral_compat: its weight.
        kernel: ``lattice``, the paper's approximation; or ``exact``, whose cost grows with the square of the
            number of pixels: for GPUs, or to see what the lattice leaves out.

    Raises:
        UserError: a width that is not above 0, a weight or number below 0, an unknown kernel.
    """

    def __init__(
        self,
        num_iter: int = 10, gaussian_sxy: float = 3.0, gaussian_compat: float = 3.0,
        bilateral_sxy: float = 64.0, bilateral_srgb: float = 5.0, bilateral_compat: float = 4.0,
        kernel: str = "lattice",
    ):  # fmt: skip
        super().__init__()
        if kernel not in _KERNELS:
            raise UserError(f"kernel={kernel}: need one of {', '.join(_KERNELS)}")
        if min(gaussian_sxy, bilateral_sxy, bilateral_srgb) <= 0:
            widths = f"bilateral_sxy={bilateral_sxy}, bilateral_srgb={bilateral_srgb}"
            raise UserError(f"gaussian_sxy={gaussian_sxy}, {widths}: need widths above 0")
        if min(num_iter, gaussian_compat, bilateral_compat) < 0:
            weights = f"gaussian_compat={gaussian_compat}, bilateral_compat={bilateral_compat}"
            raise UserError(f"num_iter={num_iter}, {weights}: need numbers of at least 0")
        self.num_iter, self.kernel = num_iter, kernel
        self.gaussian_sxy, self.gaussian_compat = gaussian_sxy, gaussian_compat
        self.bilateral_sxy, self.bilateral_srgb = bilateral_sxy, bilateral_srgb
        self.bilateral_compat = bilateral_compat

    def extra_repr(self) -> str:
        """All settings on one line."""
        gaussian = f"Gaussian σ {self.gaussian_sxy:g} weight {self.gaussian_compat:g}"
        widths = f"σ_xy {self.bilateral_sxy:g} σ_rgb {self.bilateral_srgb:g}"
        bilateral = f"bilateral {widths} weight {self.bilateral_compat:g}"
        return f"{self.num_iter} iterations, {gaussian}, {bilateral}, {self.kernel}"

    @torch.no_grad()
    def forward(self, rgb: Tensor, prob: Tensor) -> Tensor:
        """Return the probabilities (B, K, H, W) float32 after mean field; over K they sum to 1.

        Args:
            rgb: (B, 3, H, W) uint8.
            prob: (B, K, H, W) in [0, 1], any floating type. With K = 1 the result is 1 everywhere.

        Raises:
            UserError: kernels so narrow that the lattice cannot be numbered.
        """
        assert rgb.shape == (len(prob), 3, *prob.shape[2:])
        position = _positions(prob.shape[2:], rgb.device)
        gaussian = self._kernel(position / self.gaussian_sxy, self.gaussian_compat)
        infer = partial(self._infer, position=position, gaussian=gaussian)
        return torch.stack(_for_each(infer, rgb, prob))

    def _infer(self, rgb: Tensor, prob: Tensor, position: Tensor, gaussian: Kernel) -> Tensor:
        """Mean field of one image, ``rgb`` (3, H, W) and ``prob`` (K, H, W)."""
        color = rgb.flatten(1).float()
        features = torch.cat([position / self.bilateral_sxy, color / self.bilateral_srgb])  # (5, N)
        bilateral = self._kernel(features, self.bilateral_compat)
        log_prob = prob.float().flatten(1).T.clamp(FLOOR, 1).contiguous().log_()  # (N, K)
        belief = log_prob.softmax(1)
        for _ in range(self.num_iter):
            energy = gaussian(belief).add_(bilateral(belief)).add_(log_prob)
            torch.softmax(energy, 1, out=belief)
        return belief.T.reshape(prob.shape)

    def _kernel(self, features: Tensor, weight: float) -> Kernel:
        """``weight`` · K̂ of features (d, N)."""
        kernel = _KERNELS[self.kernel](features)
        total = kernel(torch.ones_like(features[:1].T))  # (N, 1)
        return kernel.scaled((weight / total).sqrt_()[:, 0])


def _for_each(infer: Callable[[Tensor, Tensor], Tensor], rgb: Tensor, prob: Tensor) -> list[Tensor]:
    """Map over the batch; on a CPU at once, in threads that share out torch's own."""
    threads = torch.get_num_threads()
    workers = 1 if rgb.is_cuda else min(len(rgb), threads)
    if workers < 2:
        return list(map(infer, rgb, prob))
    try:
        with ThreadPoolExecutor(workers, "crf", torch.set_num_threads, (threads // workers,)) as pool:
            return list(pool.map(infer, rgb, prob))
    finally:
        torch.set_num_threads(threads)  # threads started later take the last number set anywhere


def _positions(size: Sequence[int], device: torch.device) -> Tensor:
    """x and y of all pixels of an image of ``size`` (H, W): (2, N) float32."""
    y, x = torch.meshgrid([torch.arange(length, device=device) for length in size], indexing="ij")
    return torch.stack([x, y]).flatten(1).float()
