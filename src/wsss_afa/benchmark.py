"""Time the parts of a training step: ``python -m wsss_afa.benchmark``.

Every part is run in turn, round after round, so that a machine that slows down slows all of them. The table
gives medians; each part as a multiple of the network's own forward and backward pass; how much faster it is
than the slow reference, where one is given; and its rate as a share of what a plain matrix product
(arithmetic) or a plain copy (bytes) reaches on the same machine in the same run.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from wsss_afa.cli.allocator import keep_freed_memory, peak_memory
from wsss_afa.benchmark_parts import (
    BASE,
    Part,
    ceilings,
    crf_part,
    finish,
    label_parts,
    load_reference,
    loading_part,
    par_part,
    random_batch,
    step_parts,
)
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.growth import measure_growth, measure_par_growth, print_growth, print_par_growth
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.errors import UserError

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_parts(cfg: DictConfig, device: torch.device) -> dict[str, Part]:
    """Everything to time, the ceilings last.

    Raises:
        UserError: A setting is not known, or a file that it names is not there.
    """
    if cfg.precision not in _PRECISIONS:
        raise UserError(f"precision={cfg.precision} is not known; need one of {', '.join(_PRECISIONS)}")
    net: AFANet = instantiate(cfg.model, num_classes=cfg.num_classes).to(device)
    if cfg.compile:
        net.backbone.compile()
        net.decoder.compile()
    labeler: PseudoLabeler = instantiate(cfg.pseudo_label).to(device)
    batch = random_batch(cfg.batch_size, cfg.crop_size, cfg.num_classes, device)
    slow = load_reference(cfg.reference)
    parts = step_parts(net, labeler, instantiate(cfg.loss), batch) | label_parts(net, labeler, batch, slow)
    parts["PAR, three maps"] = par_part(labeler, cfg.crop_size // 2, device, slow)
    parts["dense CRF, one image"] = crf_part(cfg.num_classes + 1, cfg.crop_size, device)
    if cfg.photos is not None:
        parts["photo to crop"] = loading_part(cfg.photos, cfg.crop_size)
    return parts | ceilings(device)


def measure(
    parts: dict[str, Part],
    rounds: int,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every part in every round, interleaved, after one round that is not counted."""
    timed = {name: part.run for name, part in parts.items()}
    timed |= {f"{name}, reference": part.reference for name, part in parts.items() if part.reference}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in track(range(rounds + 1), description="rounds"):
        for name, run in timed.items():
            finish(device)
            start = clock()
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                run()
            finish(device)
            if turn:
                seconds[name].append((clock() - start) / parts[name.removesuffix(", reference")].items)
    return seconds


def summarise(parts: dict[str, Part], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row of the table per part."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    arithmetic = parts["matrix product"].flops / median["matrix product"]
    bandwidth = parts["copy"].bytes / median["copy"]
    rows = []
    for name, part in parts.items():
        slow = median.get(f"{name}, reference")
        rows.append(
            {
                "part": name,
                "seconds": median[name],
                "ratio": median[name] / median[BASE],
                "faster": slow / median[name] if slow else None,
                "gflops": part.flops / median[name] / 1e9 or None,
                "arithmetic": part.flops / median[name] / arithmetic or None,
                "gbytes": part.bytes / median[name] / 1e9 or None,
                "bandwidth": part.bytes / median[name] / bandwidth or None,
            }
        )
    return rows


_COLUMNS = {
    "part": ("part", "{}"),
    "seconds": ("s", "{:.3f}"),
    "ratio": ("× f+b", "{:.2f}"),
    "faster": ("× ref", "{:.1f}"),
    "gflops": ("GFLOP/s", "{:.0f}"),
    "arithmetic": ("%", "{:.0%}"),
    "gbytes": ("GB/s", "{:.1f}"),
    "bandwidth": ("%", "{:.0%}"),
}


def print_rows(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left")
    for key, (header, _) in _COLUMNS.items():
        table.add_column(header, justify="left" if key == "part" else "right", no_wrap=True)
    for row in rows:
        cells = ("" if row[key] is None else form.format(row[key]) for key, (_, form) in _COLUMNS.items())
        table.add_row(*cells)
    console.print(table)


@entry_point("benchmark")
def main(cfg: DictConfig) -> float:
    """Print the table, write ``benchmark.json``, and return the third phase's ratio.

    With ``growth=true`` print and write instead how one step grows with each setting alone, and PAR's memory
    with its maps.
    """
    device, console = torch.device(cfg.device), Console()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.growth:
        growth, par = measure_growth(cfg), measure_par_growth(cfg)
        print_growth(growth, console)
        print_par_growth(par, console)
        _write(folder / "growth.json", {"step": growth, "par": par}, console)
        return float("nan")
    if cfg.keep_memory:
        keep_freed_memory()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    parts = make_parts(cfg, device)
    clock = time.process_time if cfg.cpu_time else time.perf_counter
    seconds = measure(parts, cfg.rounds, device, _PRECISIONS[cfg.precision], clock)
    rows = summarise(parts, seconds)
    title = f"{device}, {torch.get_num_threads()} threads, {cfg.precision}, torch {torch.__version__}"
    print_rows(rows, title, console)
    report = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "rows": rows,
        "seconds": seconds,
        "peak_gib": peak_memory(device),
    }
    console.print(f"peak memory {report['peak_gib']:.2f} GiB")
    _write(folder / "benchmark.json", report, console)
    return float(next(row["ratio"] for row in rows if row["part"] == "step, third phase"))


def _write(path: Path, report: dict[str, Any], console: Console) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
