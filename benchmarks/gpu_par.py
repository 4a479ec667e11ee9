"""PAR alone on a GPU: the library's loop against one that torch.compile can take."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gpu_clock import finish, peak_gib
from torch import Tensor

from wsss_afa.ops.par import PixelAdaptiveRefinement


class CompiledPAR(PixelAdaptiveRefinement):
    """PAR as torch.compile likes it: neighbours gathered by index, in one reduction, instead of in a loop.

    The loop of the plain path has hundreds of operations in place, which take the compiler many minutes.
    """

    def forward(self, image: Tensor, maps: Tensor, extent: Tensor | None = None) -> Tensor:
        """As the parent's, without gradient."""
        offsets = torch.tensor(self.offsets, device=maps.device)
        position = self.position_kernel.to(image)[:, None, None]
        weights = _weigh(image.float(), offsets, position, self.color_width, extent)
        maps = maps.float()
        for _ in range(self.num_iter):
            maps = _average(weights, maps, offsets, extent)
        return maps


def _neighbours(maps: Tensor, offsets: Tensor, extent: Tensor | None) -> Tensor:
    """The P neighbours of each pixel, (B, G, P, H, W), inside ``extent``."""
    batch, groups, height, width = maps.shape
    rows = (torch.arange(height, device=maps.device) + offsets[:, :1]).clamp(0, height - 1)[None]  # (1, P, H)
    columns = (torch.arange(width, device=maps.device) + offsets[:, 1:]).clamp(0, width - 1)[None]
    if extent is not None:
        rows = torch.minimum(rows, extent[:, 0, None, None] - 1)  # (B, P, H)
        columns = torch.minimum(columns, extent[:, 1, None, None] - 1)
    place = (rows[..., None] * width + columns[:, :, None]).flatten(1)[:, None]  # (1 or B, 1, P·H·W)
    gathered = maps.flatten(2).gather(2, place.expand(batch, groups, -1))
    return gathered.view(batch, groups, len(offsets), height, width)


@torch.compile
def _weigh(
    image: Tensor, offsets: Tensor, position: Tensor, color_width: float, extent: Tensor | None
) -> Tensor:
    neighbours = _neighbours(image, offsets, extent)  # (B, 3, P, H, W)
    spread = (neighbours.std(2, keepdim=True) + 1e-8) * color_width
    unlikeness = ((image[:, :, None] - neighbours) / spread).square().mean(1)
    return (-unlikeness).softmax(1) + position


@torch.compile
def _average(weights: Tensor, maps: Tensor, offsets: Tensor, extent: Tensor | None) -> Tensor:
    return (weights[:, None] * _neighbours(maps, offsets, extent)).sum(2)


FORMS: dict[str, type[PixelAdaptiveRefinement]] = {
    "plain": PixelAdaptiveRefinement, "compiled": CompiledPAR,
}  # fmt: skip
"""Of PAR, by what `Case.par` calls them."""


@torch.no_grad()
def measure_par(
    image: Tensor, counts: Sequence[int], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """Each form of PAR in turn on (B, 3, H, W) colours, for each number of maps.

    Median milliseconds, memory beside its input in MiB, and the largest difference to float64.
    """
    kinds = FORMS if device.type == "cuda" else {"plain": PixelAdaptiveRefinement}
    forms = {name: kind().to(device) for name, kind in kinds.items()}
    return [row for maps in counts for row in _rows(forms, image.to(device), maps, rounds)]


def _rows(
    forms: dict[str, PixelAdaptiveRefinement], image: Tensor, maps: int, rounds: int
) -> list[dict[str, Any]]:
    device = image.device
    scores = torch.rand(len(image), maps, *image.shape[2:], device=device)
    truth = PixelAdaptiveRefinement().to(device).double()(image.double(), scores.double())
    rows = {form: {"form": form, "maps": maps, "times": []} for form in forms}
    for form in list(forms):
        try:
            peak_gib(device)
            before, began = _allocated(device), finish(device)
            difference = (forms[form](image, scores) - truth).abs().max().item()
            rows[form] |= {"first": finish(device) - began, "difference": difference}
            forms[form](image, scores)
            peak_gib(device)
            forms[form](image, scores)
            peak = peak_gib(device)
            rows[form]["extra_mib"] = None if peak is None else 1024 * (peak - before)
        except Exception:
            rows[form]["error"] = traceback.format_exc()[-3000:]
            del forms[form]
    for _ in range(rounds):
        for form, par in forms.items():
            rows[form]["times"].append(_milliseconds(partial(par, image, scores), device))
    for row in rows.values():
        row["ms"] = statistics.median(row["times"]) if row["times"] else None
    return list(rows.values())


def _allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Of a run by the GPU's own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
