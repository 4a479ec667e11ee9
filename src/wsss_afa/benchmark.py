"""Time the parts of a training step: ``python -m wsss_afa.benchmark``.

Every part is run in turn, round after round, so that a machine that slows down slows all of them. The table
gives medians, and each part as a multiple of the network's own forward and backward pass.
"""

from __future__ import annotations

import json
import platform
import resource
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
from torch import Tensor

from wsss_afa.cli import entry_point
from wsss_afa.losses import AFALoss
from wsss_afa.models.afa import AFANet
from wsss_afa.ops.pseudo_label import PseudoLabeler, own_classes, to_rgb
from wsss_afa.types import AFAOutput, Batch, PseudoLabels

BASE = "forward + backward"


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


def parts(net: AFANet, labeler: PseudoLabeler, loss: AFALoss, batch: Batch) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each call does the whole of its part."""
    image, tags, box = batch["image"], batch["class_label"], batch["valid_box"]
    output: AFAOutput = net(image)
    activation = labeler.cam(net, image, output.activation)
    rgb, classes = to_rgb(image, labeler.mean, labeler.std), own_classes(tags)
    affinity = net.affinity_head(activation.tokens).detach()
    maps = labeler.propagated_maps(activation, affinity, classes)

    def network() -> None:
        net.zero_grad()
        made = net(image)
        torch.autograd.backward(made.class_logits.sum() + made.seg_logits.mean() + made.affinity.mean())

    def step(at: int) -> Callable[[], None]:
        def run() -> None:
            net.zero_grad()
            made: AFAOutput = net(image)
            labels: PseudoLabels = labeler(net, batch, made, at)
            terms: dict[str, Tensor] = loss(made, batch, labels)
            torch.autograd.backward(terms["total"])

        return run

    def classify() -> None:
        net.zero_grad()
        torch.autograd.backward(net.classify(image).sum())

    def without_gradient(run: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(run)

    return {
        BASE: network,
        "multi-scale CAM": lambda: labeler.cam(net, image, output.activation),
        "PAR label": without_gradient(lambda: labeler.refined_maps(rgb, activation.cam, classes)),
        "large affinity": without_gradient(lambda: net.affinity_head(activation.tokens)),
        "propagation": without_gradient(lambda: labeler.propagated_maps(activation, affinity, classes)),
        "PAR in the box": without_gradient(lambda: labeler.refine_in_box(rgb, maps, box)),
        "step, first phase": classify,
        "step, second phase": step(labeler.start_step + 1),
        "step, third phase": step(labeler.propagation_step + 1),
    }


def measure(timed: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every part in every round, interleaved, after one round that is not counted."""
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


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> float:
    """Largest memory so far in GiB: the device's, or the process's resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@entry_point("benchmark")
def main(cfg: DictConfig) -> float:
    """Print the table, write ``benchmark.json``, and return the third phase's ratio."""
    device = torch.device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    net: AFANet = instantiate(cfg.model, num_classes=cfg.num_classes).to(device)
    labeler: PseudoLabeler = instantiate(cfg.pseudo_label).to(device)
    batch = random_batch(cfg.batch_size, cfg.crop_size, cfg.num_classes, device)
    seconds = measure(parts(net, labeler, instantiate(cfg.loss), batch), cfg.rounds, device)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: value / medians[BASE] for name, value in medians.items()}
    table = Table(title=f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for column in ("part", "seconds", f"× {BASE}"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, value in medians.items():
        table.add_row(name, f"{value:.3f}", f"{ratios[name]:.2f}")
    console = Console()
    console.print(table)
    console.print(f"peak memory {_peak_memory(device):.2f} GiB")
    report = {
        "machine": platform.processor() or platform.machine(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "seconds": seconds,
        "ratio": ratios,
        "peak_gib": _peak_memory(device),
    }
    path = Path(HydraConfig.get().runtime.output_dir) / "benchmark.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {path}", soft_wrap=True)
    return ratios["step, third phase"]


if __name__ == "__main__":
    main()
