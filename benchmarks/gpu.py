"""Measure this library on one GPU, and print tables for ``docs/benchmarks.md``.

    python benchmarks/gpu.py runs/gpu.json --minutes 8
    python benchmarks/gpu.py runs/gpu.json --render               # the tables of a report that is there
    python benchmarks/gpu.py runs/gpu.json --device cpu --small   # does the program itself work?

The parts run in the order of their importance until the budget is spent: the tests marked ``gpu``, PAR alone,
training steps, validation, and last what has to be compiled first. After each the report is written anew. A
part that fails leaves its traceback there, and the next begins.

Training steps are those of Lightning's own ``Trainer.fit``, optimiser and transfer of the batch included, on
a random network and smooth noise; loggers, checkpoints and the progress bar are left out. A run of AFA goes
through all three phases; of every other method its last phase is measured, at the batch and crop that its
experiment has. In each phase, steps that warm up come first, then blocks of timed steps, with a
synchronisation before and after a block only; then one step whose synchronisations are counted, and two that
are profiled.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gpu_parts
import lightning as L
import torch
import torch._dynamo.utils
from gpu_parts import Case, Size
from gpu_tables import last_line, render


class Part(NamedTuple):
    """Something to measure, and what it may take."""

    kind: str
    name: str
    seconds: float
    """Expected on an H100."""
    measure: Callable[[Size, torch.device], Any]
    row: dict[str, Any] = {}  # noqa: RUF012  # never written to
    """What its line in a table begins with."""


def _step_part(case: Case) -> Part:
    name = f"step: {case.name}, {case.precision}, TF32 {case.tf32}, PAR {case.par}"
    seconds = 100 if case.compiled else 40 if case.par == "compiled" else 20
    measure = partial(gpu_parts.measure_steps, case=case)
    if case.compiled:
        return Part("compiled", f"{name}, compiled", seconds, measure, case._asdict())
    return Part("eager", name, seconds, measure, case._asdict())


def _runs_on_a_cpu(case: Case) -> bool:
    return not (case.compiled or case.par == "compiled" or case.precision == "16-mixed")


def plan(device: torch.device) -> list[Part]:
    """All parts, the most important first."""
    steps = [_step_part(case) for case in gpu_parts.CASES if device.type == "cuda" or _runs_on_a_cpu(case)]
    validations = [
        Part(
            "validation", f"validation: {name}, {precision}", 15,
            partial(gpu_parts.measure_validation, overrides=overrides, precision=precision),
            {"name": name, "precision": precision},
        )
        for name, overrides, precision in gpu_parts.PROTOCOLS
    ]  # fmt: skip
    tests, par = (
        Part("tests", "tests", 60, gpu_parts.measure_tests),
        Part("par", "PAR", 60, gpu_parts.measure_refinement),
    )
    eager = [part for part in steps if part.kind == "eager"]
    rest = [part for part in steps if part.kind != "eager"]
    return [
        tests,
        *eager[:1],
        par,
        *eager[1:11],
        *rest[:1],
        *eager[11:],
        *validations[:-1],
        *rest[1:],
        validations[-1],
    ]


def run(parts: Sequence[Part], report: dict[str, Any], size: Size, device: torch.device, path: Path) -> None:
    """Measure all for which there is time, and write the report after each."""
    deadline = report["started"] + 60 * report["minutes"]
    longest: Counter[str] = Counter()
    for part in parts:
        if part.name in report["parts"]:
            continue
        began = time.time()
        entry: dict[str, Any] = {"kind": part.kind, "row": part.row}
        report["parts"][part.name] = entry
        if began + max(part.seconds, longest[part.kind]) > deadline and part.name != parts[0].name:
            entry["error"] = "skipped: no time left"
        else:
            report["parts"][part.name]["error"] = "did not return"
            path.write_text(json.dumps(report, indent=1) + "\n")
            try:
                entry["result"] = part.measure(size, device)
                del entry["error"]
            except Exception:
                entry["error"] = traceback.format_exc()[-6000:]
        entry["took"] = time.time() - began
        longest[part.kind] = max(longest[part.kind], int(entry["took"]))
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(
            f"{entry['took']:6.1f} s  {part.name}  {last_line(entry.get('error', 'done'))}",
            file=sys.stderr,
            flush=True,
        )
        clean(device)


def clean(device: torch.device) -> None:
    """Free what the last part left; where it broke the GPU's context, go on in a new process."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError:
            arguments = [word for word in sys.argv if word != "--resume"]
            os.execv(sys.executable, [sys.executable, *arguments, "--resume"])  # noqa: S606


def describe(device: torch.device, size: Size) -> str:
    """The machine and the sizes, on one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return (
        f"{name}, torch {torch.__version__}, lightning {L.__version__}, {date.today()}: batch {size.batch}, "
        f"crop {size.crop}, {size.classes} classes, two tags an image."
    )


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the program itself")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="budget; a part that would exceed it is left out"
    )
    parser.add_argument("--only", default="", help="regular expression of the names of parts")
    parser.add_argument("--render", action="store_true", help="print the tables of a report that is there")
    parser.add_argument("--resume", action="store_true", help="go on with a report that is there")
    options = parser.parse_args(words)
    if options.render:
        print(render(json.loads(options.report.read_text())))
        return
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    device, size = torch.device(options.device), gpu_parts.SMALL if options.small else Size()
    torch.manual_seed(0)
    report = {
        "title": describe(device, size), "command": " ".join(["python", *sys.argv]), "started": time.time(),
        "minutes": options.minutes, "parts": {},
    }  # fmt: skip
    if options.resume:
        report = json.loads(options.report.read_text())
    options.report.parent.mkdir(parents=True, exist_ok=True)
    parts = [part for part in plan(device) if re.search(options.only, part.name)]
    run(parts, report, size, device, options.report)
    print(render(report))


if __name__ == "__main__":
    main()
