"""Time the parts of a training step: ``python -m wsss_afa.benchmark``.

Every part is run in turn, round after round, so that a machine that slows down slows all of them. The table
gives medians; each part as a multiple of the network's own forward and backward pass; how much faster it is
than the slow reference, where one is given; and its rate as a share of what a plain matrix product
(arithmetic) or a plain copy (bytes) reaches on the same machine in the same run.

Arithmetic is what a forward pass multiplies and adds, counted by torch, and twice that for a backward pass.
Bytes of PAR are its weights and maps, each read or written once an iteration.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wsss_afa.cli import entry_point
from wsss_afa.losses import AFALoss
from wsss_afa.models.afa import AFANet
from wsss_afa.ops.pseudo_label import PseudoLabeler, own_classes, to_rgb
from wsss_afa.types import AFAOutput, Batch, UserError

BASE = "forward + backward"
Run = Callable[[], Any]


class Part(NamedTuple):
    """Something to time."""

    run: Run
    """Does the whole of the part."""
    flops: float = 0.0
    """Arithmetic of one run; 0 where it is not what counts."""
    bytes: float = 0.0
    """Least memory traffic of one run; 0 where it is not what counts."""
    reference: Run | None = None
    """The same by the slow reference."""


def random_batch(batch_size: int, crop_size: int, num_classes: int, device: torch.device) -> Batch:
    """Noise of a batch's form, two tags an image, a box with a margin."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.zeros(batch_size, num_classes)
    tags.scatter_(1, torch.randint(num_classes, (batch_size, 2), generator=generator), 1.0)
    margin = crop_size // 16
    box = torch.tensor([[margin, crop_size - margin, 0, crop_size]]).repeat(batch_size, 1)
    return {
        "image": torch.randn(batch_size, 3, crop_size, crop_size, generator=generator).to(device),
        "class_label": tags.to(device),
        "valid_box": box.to(device),
        "name": [""] * batch_size,
    }


def step_parts(net: AFANet, labeler: PseudoLabeler, loss: AFALoss, batch: Batch) -> dict[str, Part]:
    """The network's own pass, and whole steps of the three phases without the optimiser."""
    image, count = batch["image"], _flops(lambda: net(batch["image"]))

    def network() -> None:
        net.zero_grad()
        made = net(image)
        torch.autograd.backward(made.class_logits.sum() + made.seg_logits.mean() + made.affinity.mean())

    def classify() -> None:
        net.zero_grad()
        torch.autograd.backward(net.classify(image).sum())

    def step(at: int) -> Run:
        def run() -> None:
            net.zero_grad()
            made: AFAOutput = net(image)
            torch.autograd.backward(loss(made, batch, labeler(net, batch, made, at))["total"])

        return run

    return {
        BASE: Part(network, flops=3 * count),
        "step, first phase": Part(classify, flops=3 * _flops(lambda: net.classify(image))),
        "step, second phase": Part(step(labeler.start_step + 1)),
        "step, third phase": Part(step(labeler.propagation_step + 1)),
    }


def label_parts(
    net: AFANet, labeler: PseudoLabeler, batch: Batch, slow: ModuleType | None
) -> dict[str, Part]:
    """What makes the pseudo labels, piece by piece, with the classes of the images alone."""
    output: AFAOutput = net(batch["image"])
    channels = own_classes(batch["class_label"]).channels
    tags = torch.ones(channels.shape, device=channels.device)
    classes, box = own_classes(tags), batch["valid_box"]
    rgb = to_rgb(batch["image"], labeler.mean, labeler.std)

    def localize() -> Any:
        return labeler.cam(net, batch["image"], output.activation, channels)

    activation = localize()
    affinity = net.affinity_head(activation.tokens).detach()
    maps = labeler.propagated_maps(activation, affinity, classes)
    head, tokens = net.affinity_head, activation.tokens
    per_head = (lambda: slow.affinity(tokens.queries, tokens.keys, head.weight, head.bias)) if slow else None
    parts = {
        "multi-scale CAM": Part(localize, flops=_flops(localize)),
        "PAR label": Part(lambda: labeler.refined_maps(rgb, activation.cam, classes)),
        "large affinity": Part(lambda: head(tokens), flops=_flops(lambda: head(tokens)), reference=per_head),
        "propagation": Part(lambda: labeler.propagated_maps(activation, affinity, classes)),
        "PAR in the box": Part(lambda: labeler.refine_in_box(rgb, maps, box)),
    }
    return {name: part._replace(run=torch.no_grad()(part.run)) for name, part in parts.items()}


def par_part(labeler: PseudoLabeler, size: int, device: torch.device, slow: ModuleType | None) -> Part:
    """PAR alone: three maps at half the crop."""
    par = labeler.refine
    assert par is not None
    image, maps = torch.rand(1, 3, size, size, device=device), torch.rand(1, 3, size, size, device=device)
    dilations = sorted({max(abs(dy), abs(dx)) for dy, dx in par.offsets})
    traffic = 4.0 * size**2 * (len(par.offsets) + 2 * maps.shape[1]) * par.num_iter
    reference = (lambda: slow.par(image, maps, par.num_iter, dilations)) if slow else None
    return Part(torch.no_grad()(lambda: par(image, maps)), bytes=traffic, reference=reference)


def ceilings(device: torch.device) -> dict[str, Part]:
    """A plain matrix product and a plain copy: what the machine can do."""
    side, count = 1024, 2**25
    left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    source, target = torch.rand(count, device=device), torch.empty(count, device=device)
    return {
        "matrix product": Part(lambda: left @ right, flops=2.0 * side**3),
        "copy": Part(lambda: target.copy_(source), bytes=8.0 * count),
    }


def measure(parts: dict[str, Part], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every part in every round, interleaved, after one round that is not counted."""
    timed = {name: part.run for name, part in parts.items()}
    timed |= {f"{name}, reference": part.reference for name, part in parts.items() if part.reference}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in track(range(rounds + 1), description="rounds"):
        for name, run in timed.items():
            _finish(device)
            start = time.perf_counter()
            run()
            _finish(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
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


def _flops(run: Run) -> float:
    """Arithmetic of a forward pass; attention is counted as the products that it stands for."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return float(counter.get_total_flops())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: the device's, or the process's resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _load(path: str | None) -> ModuleType | None:
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("reference", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"reference={path}: no such file; give tests/reference.py of a checkout, or null")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@entry_point("benchmark")
def main(cfg: DictConfig) -> float:
    """Print the table, write ``benchmark.json``, and return the third phase's ratio."""
    device = torch.device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    net: AFANet = instantiate(cfg.model, num_classes=cfg.num_classes).to(device)
    if cfg.compile:
        net.backbone.compile()
        net.decoder.compile()
    labeler: PseudoLabeler = instantiate(cfg.pseudo_label).to(device)
    batch = random_batch(cfg.batch_size, cfg.crop_size, cfg.num_classes, device)
    slow = _load(cfg.reference)
    parts = step_parts(net, labeler, instantiate(cfg.loss), batch) | label_parts(net, labeler, batch, slow)
    parts["PAR, three maps"] = par_part(labeler, cfg.crop_size // 2, device, slow)
    peak_before = _peak_memory(device)
    seconds = measure(parts | ceilings(device), cfg.rounds, device)
    rows = summarise(parts | ceilings(device), seconds)
    console = Console()
    print_rows(rows, f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}", console)
    report = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "rows": rows,
        "seconds": seconds,
        "peak_gib": _peak_memory(device),
        "peak_before_gib": peak_before,
    }
    console.print(f"peak memory {report['peak_gib']:.2f} GiB")
    path = Path(HydraConfig.get().runtime.output_dir) / "benchmark.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path}", soft_wrap=True)
    return float(next(row["ratio"] for row in rows if row["part"] == "step, third phase"))


if __name__ == "__main__":
    main()
