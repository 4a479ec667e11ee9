"""Maps and affinities made from true masks, as good or as bad as asked: what refinement is measured on.

Legend: G classes of one image, N = h·w cells; H, W, h, w as everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsss_afa.ops.affinity import affinity_label
from wsss_afa.ops.cam import normalize_cam
from wsss_afa.types import IGNORE_INDEX, Sample

KINDS = ("faint", "random", "border")
"""How affinity may be wrong, see `Scene.affinity`."""
_LUMP = 1.0
"""Standard deviation, in cells, of what makes the dropped parts hang together."""


class Scene(NamedTuple):
    """One image, its truth on pixels and cells, and what is random about it, the same for every setting."""

    rgb: Tensor
    """(1, 3, H, W) uint8."""
    mask: Tensor
    """(1, H, W) int64 in [0, C] or 255."""
    ids: Tensor
    """(G + 1) int64 in [0, C]: background and the classes of the mask, ascending."""
    cover: NDArray[np.float32]
    """(G, h, w) in [0, 1], share of each cell that is of the class."""
    lumps: NDArray[np.float32]
    """(G, h, w) smooth noise: the least goes first when parts are dropped."""
    pairs: dict[str, Tensor]
    """By kind, (N, N) symmetric: the least goes wrong first."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.mask.shape[1], self.mask.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.cover.shape[1], self.cover.shape[2]

    def coarse_map(self, blur: float, dropped: float) -> Tensor:
        """What a class activation map might be: (1, G, h, w) in [0, 1], the most of each class 1.

        Args:
            blur: standard deviation in cells, applied after parts are dropped; 0 for none.
            dropped: share of each object's cells that do not fire, in [0, 1).
        """
        order = np.where(self.cover > 0, self.lumps, np.inf).reshape(len(self.cover), -1)
        rank = order.argsort(1).argsort(1).reshape(self.cover.shape)
        count = (self.cover > 0).sum((1, 2), keepdims=True)
        fired = np.where(rank < np.floor(dropped * count), 0, self.cover)
        return normalize_cam(torch.from_numpy(_blur(fired, blur))[None])

    def affinity(self, kind: str, false: float, missed: float, radius: int) -> Tensor:
        """True affinity (1, N, N) of the cells, spoilt; symmetric, 1 on the diagonal.

        Within the radius, the mean over pairs of different classes is ``false``, and one minus the mean over
        pairs of the same class is ``missed``, whatever the kind.

        Args:
            kind: ``faint``: every pair is a little wrong; ``random``: some are quite wrong; ``border``: those
                whose two cells lie nearest to cells of another class are quite wrong.
            false: of pairs of different classes, in [0, 1].
            missed: of pairs of the same class but a cell and itself, in [0, 1].
            radius: of pairs that are looked at, in cells.
        """
        truth = affinity_label(self.mask, self.grid, radius)[0]
        truth.fill_diagonal_(IGNORE_INDEX)
        affinity = (truth == 1).float()
        for value, share in ((0, false), (1, missed)):
            pairs = truth == value
            if kind == "faint":
                affinity[pairs] = abs(value - share)
            elif wrong := round(share * int(pairs.sum())):
                key = self.pairs[kind]
                affinity[pairs & (key <= key[pairs].kthvalue(wrong).values)] = 1 - value
        return affinity.fill_diagonal_(1)[None]


def make_scene(sample: Sample, stride: int, seed: int, index: int) -> Scene:
    """Prepare one image of a data set.

    Args:
        sample: with its mask.
        stride: side of a cell in pixels.
        seed: of what is random.
        index: of the image, which is random in its own way.
    """
    rng = np.random.default_rng([seed, index])
    mask = torch.from_numpy(sample["mask"]).long()[None]
    present = [each for each in np.unique(sample["mask"]).tolist() if each not in (0, IGNORE_INDEX)]
    ids = torch.tensor([0, *present])
    grid = (-(-mask.shape[1] // stride), -(-mask.shape[2] // stride))
    layers = (mask == ids[1:, None, None]).float()[None]  # (1, G, H, W)
    cover = F.interpolate(layers, grid, mode="area")[0].numpy()
    lumps = _blur(rng.standard_normal(cover.shape, np.float32), _LUMP)
    tokens = F.interpolate(mask[:, None].float(), grid, mode="nearest").flatten()
    noise = torch.from_numpy(rng.random((len(tokens),) * 2, np.float32))
    noise = torch.minimum(noise, noise.T)
    depth = _depth(tokens, grid)
    pairs = {"random": noise, "border": depth[:, None] + depth[None, :] + noise}
    rgb = torch.from_numpy(sample["image"]).permute(2, 0, 1)[None]
    return Scene(rgb, mask, ids, cover, lumps, pairs)


def _blur(maps: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian filter of each of (G, h, w)."""
    if sigma == 0:
        return maps.astype(np.float32)
    blurred = [cv2.GaussianBlur(each, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101) for each in maps]
    return np.stack(blurred).astype(np.float32)


def _depth(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Distance (N) in cells of each cell to the nearest of another class, Chebyshev."""
    place = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    distance = torch.cdist(place, place, p=float("inf"))
    return distance.masked_fill(tokens[:, None] == tokens[None, :], float(max(grid))).amin(1)
