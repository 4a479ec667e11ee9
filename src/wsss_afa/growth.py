"""How a step's cost grows with its settings, and PAR's memory with its maps: ``benchmark growth=true``.

Each setting is varied alone, in a process of its own for every value, so that no run stands on another's
memory. Growth is fitted as a power, y ∝ x^e, over the values; what a tenfold setting would cost follows from
the largest value by that power, and is no measurement.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsss_afa.cli.allocator import peak_memory
from wsss_afa.benchmark_parts import finish, load_reference, par_part, random_batch, step_parts


def measure_growth(cfg: DictConfig) -> dict[str, Any]:
    """Seconds and GiB of a third-phase step for every value, and the fitted powers, by setting."""
    points = [(name, value) for name, values in cfg.vary.items() for value in values]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in cfg.vary}
    for name, value in track(points, description="values"):
        seconds, memory = _apart(_one_step, _with(cfg, name, value))
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


def measure_par_growth(cfg: DictConfig) -> list[dict[str, float]]:
    """MiB that PAR needs for so many maps at half the crop, and the slow reference's if there is one."""
    measured = {"mib": "run"} | ({"reference_mib": "reference"} if cfg.reference else {})
    return [
        {"maps": count} | {key: _apart(_one_par, cfg, count, which) for key, which in measured.items()}
        for count in track(list(cfg.par_maps), description="maps")
    ]


def print_par_growth(points: list[dict[str, float]], console: Console) -> None:
    """Print a table of all counts of maps."""
    table = Table(title="One PAR; memory beside its input", title_justify="left")
    for header in ("maps", "MiB", "reference, MiB", "share"):
        table.add_column(header, justify="right")
    for point in points:
        slow = point.get("reference_mib")
        beside = (f"{slow:.1f}", f"1/{slow / point['mib']:.1f}") if slow else ("", "")
        table.add_row(f"{point['maps']}", f"{point['mib']:.1f}", *beside)
    console.print(table)


def _apart(function: Callable[..., Any], cfg: DictConfig, *arguments: Any) -> Any:
    """What a function of a plain configuration returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (OmegaConf.to_container(cfg, resolve=True), *arguments))


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


def _one_par(config: dict[str, Any], num_maps: int, which: str) -> float:
    """MiB that one ``run`` or ``reference`` needs beside its input, what a first call loads not counted."""
    cfg = OmegaConf.create(config)
    device = torch.device(cfg.device)
    labeler, slow = instantiate(cfg.pseudo_label).to(device), load_reference(cfg.reference)
    first, run = (
        getattr(par_part(labeler, size, device, slow, count), which)
        for size, count in ((32, 1), (cfg.crop_size // 2, num_maps))
    )
    first()
    before = peak_memory(device)
    run()
    return 1024 * (peak_memory(device) - before)


def _powers(points: list[dict[str, float]]) -> dict[str, float]:
    """Least squares of log y over log x."""
    x = np.log([point["size"] for point in points])
    found = {}
    for key, name in (("seconds", "time"), ("gib", "memory")):
        power = float(np.polyfit(x, np.log([max(point[key], 1e-9) for point in points]), 1)[0])
        found[f"{name}_power"] = power
        found[f"{key}_at_10"] = points[-1][key] * math.pow(10, power)
    return found
