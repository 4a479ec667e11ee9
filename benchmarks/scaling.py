"""How a step of the last phase grows with crop, batch and classes, in time and in memory.

    python benchmarks/scaling.py --threads 1 --cpu-time --crop 512 256 384 768 --batch 2 1 4

The others are compared with the first value of each, which also holds while another setting varies. Memory is
that of a process of its own, above that of the loaded network.
"""

from __future__ import annotations

import math
import multiprocessing
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from timing import arguments, build, measure, print_table, step_of

SIZES = {"crop": [512, 256, 384, 768], "batch": [2, 1, 4], "classes": [20, 80, 320]}
"""Values by setting, the one to compare with first."""


def variations(options: Namespace) -> Iterator[tuple[str, dict[str, int]]]:
    """The name of what varies and a value of each setting; the common one first, under no name."""
    values = {name: getattr(options, name) for name in SIZES}
    common = {name: each[0] for name, each in values.items()}
    yield "", common
    for name, (_, *others) in values.items():
        yield from ((name, common | {name: value}) for value in others)


def peak_memory(device: str) -> float:
    """The largest memory so far in GiB: the device's, or the process's resident size on a CPU (Linux)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**30
    _, _, rest = Path("/proc/self/status").read_text().partition("VmHWM:")
    return int(rest.split()[0]) / 2**20  # rusage would count what this process was forked from


def memory_of(options: Namespace, sizes: dict[str, int]) -> float:
    """GiB that two steps need above the loaded network."""
    torch.set_num_threads(options.threads)
    run, before = step_of(build(options, **sizes)), peak_memory(options.device)
    run(), run()
    return peak_memory(options.device) - before


def memory_apart(options: Namespace, sizes: dict[str, int]) -> float:
    """The same in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_of, (options, sizes))


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, values in SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values, metavar="N")
    options = parser.parse_intermixed_args(words)
    settings = list(variations(options))
    memory = [memory_apart(options, sizes) for _, sizes in settings]
    runs = {str(index): step_of(build(options, **sizes)) for index, (_, sizes) in enumerate(settings)}
    seconds = list(measure(runs, options).values())
    rows = []
    for (name, sizes), time, gib in zip(settings, seconds, memory, strict=True):
        text = f"{name} {sizes[name]}" if name else " ".join(f"{key} {size}" for key, size in sizes.items())
        power = f"{math.log(time / seconds[0], sizes[name] / settings[0][1][name]):.2f}" if name else ""
        ratios = [f"{time / seconds[0]:.2f}", power, f"{gib:.2f}", f"{gib / memory[0]:.2f}"]
        rows.append([text, f"{time:.3f}", *ratios])
    print_table("a step of the last phase", ["setting", "s", "×", "power", "GiB", "×"], rows)


if __name__ == "__main__":
    main()
