"""Which tokens of an uncertain label a method looks at (MoRe, section 3.3).

Shapes: h and w the grid of tokens, n how many are drawn of each image, s the side of a window of cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_afa.ops.draws import draw_cells
from wsss_afa.types import IGNORE_INDEX


class UncertainTokens(nn.Module):
    """Draw tokens whose label is ignored and whose surroundings hold objects rather than background.

    Cells at least s/2 away from the border count. An ignored one is a candidate if the mean over its window,
    of 0 for background, 1 for ignored and 2 for objects, reaches ``surroundings``. Where there are no more
    than n candidates all are taken, and a quarter of what is missing of n is drawn from objects.

    Args:
        count: n.
        window: s, in cells.
        surroundings: least mean over the window.
        offset: the token taken lies this many cells up and left of the window's middle less s/2. The released
            program has 0: three cells up and left of the cell that it looked at; s/2 takes that cell.
    """

    def __init__(self, count: int = 8, window: int = 6, surroundings: float = 1.2, offset: int = 3):
        super().__init__()
        self.count, self.window, self.surroundings, self.offset = count, window, surroundings, offset

    def forward(self, label: Tensor, seeds: Tensor) -> Tensor:
        """Draw tokens of a label (B, h, w) in [0, C] or 255, by a seed for each image (B,).

        Returns:
            Flat indices of the grid, (B, m) int64; −1 is filling. A grid without inner cells has only that.
        """
        batch, width = len(label), label.shape[-1]
        candidates, objects = self.candidates(label)
        inner = candidates[0].numel()
        if inner == 0:
            return torch.full((batch, 1), -1, device=label.device)
        found = candidates.sum((-2, -1))
        take, fill = min(self.count, inner), min(self.count // 4, inner)
        drawn = draw_cells(candidates, seeds, take)
        missing = (self.count - found).clamp(min=0) // 4
        others = draw_cells(objects & (objects.sum((-2, -1)) >= missing)[:, None, None], seeds + 1, fill)
        cells = torch.cat([drawn, others], dim=1)
        rank = torch.arange(take, device=label.device), torch.arange(fill, device=label.device)
        valid = torch.cat([rank[0] < found[:, None], rank[1] < missing[:, None]], dim=1)
        columns = candidates.shape[-1]
        index = (cells // columns + self.offset) * width + cells % columns + self.offset
        return index.masked_fill(~valid, -1)

    def candidates(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """Inner cells that are candidates, and those of objects: (B, h − s, w − s) bool each."""
        value = (label != 0).float() + ((label != 0) & (label != IGNORE_INDEX)).float()  # 0, 1, 2
        half, (height, width) = self.window // 2, label.shape[-2:]
        rows, columns = max(0, height - self.window), max(0, width - self.window)
        middle = value[:, half : half + rows, half : half + columns]
        if not rows * columns:
            return middle > 1, middle > 1
        mean = F.avg_pool2d(value[:, None], self.window, stride=1)[:, 0, :rows, :columns]
        return (middle == 1) & (mean >= self.surroundings), middle == 2
