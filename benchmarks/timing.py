"""What the benchmarks share: a method with noise to train on, and a clock that runs everything in turn."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from torch.optim import Optimizer
from torch.utils.benchmark import Measurement, Timer

from wsss_afa.files import CONFIG_DIR
from wsss_afa.methods import recipe
from wsss_afa.methods.base import Method
from wsss_afa.programs.train import make_recipe
from wsss_afa.types import Batch

Run = Callable[[], Any]
Setting = tuple[Method, Optimizer, Batch]


def arguments(description: str | None) -> ArgumentParser:
    """A parser of what both programs are told; words that it does not know are settings of training."""
    parser = ArgumentParser(description=description, epilog="Further arguments override conf/train.yaml.")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="as for python -m wsss_afa.train")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is timed in turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own seconds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile encoder and decoder")
    return parser


def build(options: Namespace, crop: int, batch: int, classes: int) -> Setting:
    """A method with random weights, which take as long as others, and a batch of noise for it."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("train", ["backbone.pretrained=null", *options.overrides])
    method = recipe.build(make_recipe(cfg, tuple(map(str, range(classes)))), trust=None).to(options.device)
    if options.compile:
        method.compile_network()
    optimizer, _ = instantiate(cfg.optim)(method.parameter_kinds())
    return method, optimizer, noise(crop, batch, classes, options.device)


def noise(crop: int, batch: int, classes: int, device: str) -> Batch:
    """Images of noise with two tags each, or one where the classes allow no more, and a box with a margin.

    They have seeds, and the views that a method may ask for.
    """
    images = torch.randn(3, batch, 3, crop, crop, device=device)
    tags = torch.zeros(batch, classes).scatter(1, torch.rand(batch, classes).argsort(1)[:, :2], 1.0)
    return {
        "image": images[0],
        "class_label": tags.to(device),
        "valid_box": torch.tensor([[crop // 16, crop - crop // 16, 0, crop]] * batch, device=device),
        "name": [""] * batch,
        "seed": torch.arange(batch, device=device),
        "views": {"local": images[1], "global": images[2]},
    }


def step_of(setting: Setting, first: int | None = None) -> Run:
    """A whole step of the phase that begins at step ``first``; of the last phase where none is given."""
    method, optimizer, batch = setting
    at = method.phases[-1].first if first is None else first

    def run() -> None:
        optimizer.zero_grad()
        terms = method.losses(batch, at)
        method.total(terms, at).backward()
        optimizer.step()

    return run


def measure(parts: Mapping[str, Run], options: Namespace) -> dict[str, float]:
    """Median seconds of every part; all run in turn, round after round, each warmed up by one run."""
    own = {"timer": time.process_time} if options.cpu_time else {}
    precision = getattr(torch, options.precision)
    cast = torch.autocast(options.device, precision, enabled=precision != torch.float32)
    timers = {
        name: Timer("run()", globals={"run": cast(run)}, num_threads=options.threads, **own)
        for name, run in parts.items()
    }
    found: dict[str, list[Measurement]] = {name: [] for name in parts}
    for _ in range(options.rounds):
        for name, timer in timers.items():
            found[name].append(timer.blocked_autorange(min_run_time=0.05))
    return {name: Measurement.merge(each)[0].median for name, each in found.items()}


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that are as wide as they need, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    print(f"\n{title}")
    for row in (headers, *rows):
        first, *others = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.lstrip().ljust(widths[0]), *others]), flush=True)
