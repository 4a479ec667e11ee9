"""How a training step's time and memory grow with crop, batch, classes, scales: ``benchmark growth=true``.

Each setting is varied alone, in a process of its own for every value, so that no run stands on another's
memory. Growth is fitted as a power, y ∝ x^e, over the values; what a tenfold setting would cost follows from
the largest value by that power, and is no measurement.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsss_afa.allocator import peak_memory
from wsss_afa.benchmark_parts import finish, random_batch, step_parts


def measure_growth(cfg: DictConfig) -> dict[str, Any]:
    """Seconds and GiB of a third-phase step for every value, and the fitted powers, by setting."""
    points = [(name, value) for name, values in cfg.vary.items() for value in values]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in cfg.vary}
    context = multiprocessing.get_context("spawn")
    for name, value in track(points, description="values"):
        changed = OmegaConf.to_container(_with(cfg, name, value), resolve=True)
        with context.Pool(1) as pool:
            seconds, memory = pool.apply(_one_step, (changed,))
        measured[name].append({"size": _size(value), "seconds": seconds, "gib": memory})
    return {name: {"points": found, **_powers(found)} for name, found in measured.items()}


def print_growth(growth: dict[str, Any], console: Console) -> None:
    """Print a table of all values, and one of the powers."""
    table = Table(title="A third-phase step; memory above that of the loaded network", title_justify="left")
    for header in ("setting", "size", "s", "GiB", "time ∝", "memory ∝", "s at 10 ×", "GiB at 10 ×"):
        table.add_column(header, justify="left" if header == "setting" else "right")
    for name, found in growth.items():
        for index, point in enumerate(found["points"]):
            fit = index == len(found["points"]) - 1
            powers = (f"x^{found[key]:.2f}" if fit else "" for key in ("time_power", "memory_power"))
            tenfold = (f"{found[key]:.0f}" if fit else "" for key in ("seconds_at_10", "gib_at_10"))
            row = (f"{point['size']:g}", f"{point['seconds']:.2f}", f"{point['gib']:.2f}", *powers, *tenfold)
            table.add_row("" if index else name, *row)
        table.add_section()
    console.print(table)


def _with(cfg: DictConfig, name: str, value: Any) -> DictConfig:
    changed = cfg.copy()
    OmegaConf.update(changed, name, value)
    return changed


def _size(value: Any) -> float:
    """What a setting stands for on the axis: itself; of scales, the pixels of all passes to those of one."""
    if isinstance(value, int | float):
        return float(value)
    return float(sum(scale**2 for scale in value))


def _one_step(config: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of some steps, and GiB that they need beside what was there before."""
    cfg = OmegaConf.create(config)
    device = torch.device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    net = instantiate(cfg.model, num_classes=cfg.num_classes).to(device)
    labeler = instantiate(cfg.pseudo_label).to(device)
    batch = random_batch(cfg.batch_size, cfg.crop_size, cfg.num_classes, device)
    step = step_parts(net, labeler, instantiate(cfg.loss), batch, count=False)["step, third phase"].run
    clock = time.process_time if cfg.cpu_time else time.perf_counter
    before, seconds = peak_memory(device), []
    for _ in range(cfg.rounds + 1):
        start = clock()
        step()
        finish(device)
        seconds.append(clock() - start)
    return statistics.median(seconds[1:]), peak_memory(device) - before


def _powers(points: list[dict[str, float]]) -> dict[str, float]:
    """Least squares of log y over log x."""
    x = np.log([point["size"] for point in points])
    found = {}
    for key, name in (("seconds", "time"), ("gib", "memory")):
        power = float(np.polyfit(x, np.log([max(point[key], 1e-9) for point in points]), 1)[0])
        found[f"{name}_power"] = power
        found[f"{key}_at_10"] = points[-1][key] * math.pow(10, power)
    return found
