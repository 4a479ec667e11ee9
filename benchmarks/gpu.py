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
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import lightning as L
import par_triton
import torch
import torch._dynamo.utils
import torch.nn.functional as F
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from wsss_afa.files import CONFIG_DIR
from wsss_afa.methods.base import Method
from wsss_afa.methods.recipe import build
from wsss_afa.ops.par import PixelAdaptiveRefinement
from wsss_afa.programs.train import make_recipe
from wsss_afa.types import Batch

ROOT = Path(__file__).resolve().parents[1]
PHASES = (2000, 4000, 14000)
"""Lengths of AFA's phases in the published schedule of 20 000 steps."""


class Size(NamedTuple):
    """How large everything is."""

    overrides: tuple[str, ...] = ("backbone.pretrained=null",)
    """Of every composition: the paper's network, with random weights."""
    crop: int = 512
    batch: int = 8
    classes: int = 20
    warm: int = 5
    """Steps of a phase that go before those that count."""
    blocks: int = 3
    block: int = 8
    """Steps of a block."""
    maps: tuple[int, ...] = (3, 6, 12, 21)
    """Maps of one PAR: background and classes, times two thresholds."""
    rounds: int = 15
    """How often each PAR is timed."""
    photos: int = 48
    """Validation images that count; four go before."""
    others: tuple[str, ...] = ()
    """Further overrides, of methods other than AFA."""


SMALL = Size(
    ("backbone.pretrained=null", "method.decoder_dim=16"),
    crop=64, batch=2, classes=4, warm=1, blocks=1, block=1, maps=(3,), rounds=2, photos=2,
    others=("++backbone.model_args={embed_dim: 24, depth: 6, num_heads: 2}",),
)  # fmt: skip


class Case(NamedTuple):
    """One row of the table of training steps."""

    name: str
    overrides: tuple[str, ...] = ()
    """Of Hydra's, as on the command line of ``train``."""
    precision: str = "32-true"
    """Of the Trainer."""
    tf32: str = "convolutions"
    """Where float32 may be TF32: off, convolutions (torch's default), on (matrix products too)."""
    compiled: bool = False
    """What ``compile=true`` does: encoder and decoder."""
    crop: int | None = None
    """Side of a crop; None is that of the size."""
    method: str = "afa"
    """Another one takes batch, crop and length of the run from its experiment; its last phase is timed."""
    par: str = "plain"
    """PAR of torch alone (plain), of Triton (triton), or as `CompiledPAR` (compiled)."""


OTHERS = ("toco", "more", "weclip", "weclip_plus", "excel")
"""Methods that are measured beside AFA."""
VIT = ("backbone=dinov2_small",)
CASES = (
    Case("AFA", precision="bf16-mixed"),
    Case("AFA, DINOv2 ViT-S/14", VIT, precision="bf16-mixed", crop=448),
    Case("AFA"),
    Case("AFA", precision="bf16-mixed", par="triton"),
    Case("AFA", precision="bf16-mixed", par="compiled"),
    *(Case(name, method=name, precision="bf16-mixed") for name in OTHERS),
    Case("AFA, CAM in bf16", ("method.cam.precision=bf16",)),
    Case("AFA, dense energy", ("method.weights.reg=0.01",), precision="bf16-mixed"),
    Case("AFA", precision="16-mixed"),
    Case("AFA", tf32="on"),
    Case("AFA, ViT-B/16", ("backbone=vit_base",), precision="bf16-mixed", crop=448),
    Case("AFA", tf32="off"),
    Case("AFA", precision="bf16-mixed", compiled=True),
    Case("AFA, DINOv2 ViT-S/14", VIT, precision="bf16-mixed", crop=448, compiled=True),
    Case("AFA", tf32="on", compiled=True),
    Case("AFA", precision="16-mixed", compiled=True),
    Case("AFA", tf32="off", compiled=True),
    *(Case(name, method=name) for name in OTHERS),
    *(Case(name, method=name, precision="16-mixed") for name in OTHERS),
    *(Case(name, method=name, precision="bf16-mixed", compiled=True) for name in OTHERS),
)
PROTOCOLS = (
    ("validation of training", ("protocol=plain",), "bf16-mixed"),
    ("validation of training", ("protocol=plain",), "32-true"),
    ("protocol=afa protocol.crf=null", ("protocol=afa", "protocol.crf=null"), "32-true"),
    ("protocol=afa", ("protocol=afa",), "32-true"),
    ("protocol=afa, exact kernel", ("protocol=afa", "protocol.crf.kernel=exact"), "32-true"),
)
"""Name, overrides of ``evaluate``, precision."""


# Building


def compose(program: str, overrides: Sequence[str]) -> Any:
    """The configuration of a program."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.compose(program, list(overrides))


def build_module(
    overrides: Sequence[str], num_classes: int, phase_steps: int = 1, protocol: nn.Module | None = None
) -> Method:
    """AFA as ``train`` makes it of these overrides, with phases of ``phase_steps`` steps each."""
    ends = [
        f"method.phases.segmentation={phase_steps}",
        f"method.phases.propagation={2 * phase_steps}",
        f"trainer.max_steps={3 * phase_steps}",
    ]
    method = make_method(compose("train", [*overrides, *ends]), num_classes)
    if protocol is not None:
        method.protocol = protocol
    return method


def make_method(cfg: Any, num_classes: int) -> Method:
    """The method of a configuration of ``train``, with its optimiser's settings."""
    method = build(make_recipe(cfg, tuple(f"class_{i}" for i in range(num_classes))), trust=None)
    method.optim = instantiate(cfg.optim)
    return method


def build_other(case: Case, size: Size) -> tuple[Method, int, int, int]:
    """Another method in its last phase from the first step on; crop, batch and steps of its experiment."""
    towers = [] if case.method in ("toco", "more") else ["method.texts.pretrained=null"]
    towers += ["method.dino.pretrained=null"] if case.method == "weclip_plus" else []
    words = [f"+experiment=voc_{case.method}", "backbone.pretrained=null", *towers, *case.overrides]
    cfg = compose("train", [*words, "data.root=none", *size.others])
    steps, crop, batch = cfg.trainer.max_steps, cfg.data.crop_size, cfg.data.batch_size
    cfg.method.phases = dict.fromkeys(cfg.method.phases, 0)
    if size.others:
        crop, batch = 2 * size.crop, size.batch
    return make_method(cfg, size.classes), crop, batch, steps


def find_par(module: Method) -> PixelAdaptiveRefinement:
    """The refinement, wherever the method keeps it."""
    return next(part for part in module.modules() if isinstance(part, PixelAdaptiveRefinement))


def make_batch(count: int, height: int, width: int, classes: int) -> Batch:
    """Smooth noise in a batch's form: two tags an image, a box with a margin."""
    tags = torch.zeros(count, classes).scatter_(1, torch.rand(count, classes).topk(2).indices, 1.0)
    coarse = torch.randn(count, 3, height // 32 + 1, width // 32 + 1)
    image = F.interpolate(coarse, (height, width), mode="bicubic") + 0.1 * torch.randn(
        count, 3, height, width
    )
    box = torch.tensor([[height // 16, height - height // 16, 0, width]]).repeat(count, 1)
    return {"image": image, "class_label": tags, "valid_box": box, "name": ["noise"] * count,
            "seed": torch.arange(count)}  # fmt: skip


def make_trainer(device: torch.device, precision: str, steps: int, watch: Callback) -> L.Trainer:
    """A Trainer that does nothing besides its steps."""
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, precision=precision,  # type: ignore[arg-type]
        max_epochs=1, max_steps=steps, logger=False, callbacks=[watch], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip


def loader(batches: list[Batch], device: torch.device) -> DataLoader[Any]:
    """Ready batches, in memory that a GPU can fetch from as loaders of training hand them out."""
    return DataLoader(batches, batch_size=None, pin_memory=device.type == "cuda")  # type: ignore[arg-type]


# Measuring


def finish(device: torch.device) -> float:
    """Wait for the GPU; return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gib(device: torch.device) -> float | None:
    """Most memory of tensors since the last call, in GiB."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


@contextmanager
def counted_waits(waits: Counter[str]) -> Iterator[None]:
    """Count where the CPU waits for the GPU, by line of this library, or else of whoever waits."""

    def count(message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            waits[_caller()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _caller() -> str:
    """Innermost line of this library in the stack; else the innermost of any but ``warnings``."""
    stack = [frame for frame in traceback.extract_stack() if "warnings.py" not in frame.filename][:-2]
    ours = [frame for frame in stack if str(ROOT / "src") in frame.filename]
    frame = (ours or stack)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}"


def kernel_times(events: Sequence[Any], steps: int) -> dict[str, Any]:
    """Seconds of a step in which the GPU does anything, and its longest kernels in milliseconds."""
    kernels = [
        event for event in events
        if event.device_type == DeviceType.CUDA and not event.name.startswith(("Optimizer.", "ProfilerStep"))
    ]  # fmt: skip
    busy = end = 0.0
    for start, stop in sorted((event.time_range.start, event.time_range.end) for event in kernels):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    totals: Counter[str] = Counter()
    for event in kernels:
        totals[event.name[:120]] += event.time_range.elapsed_us()
    longest = {name: total / steps / 1e3 for name, total in totals.most_common(15)}
    return {"busy": busy / steps / 1e6, "kernels": len(kernels) / steps, "longest_ms": longest}


class Stopwatch(Callback):
    """Times steps of each phase; see the top of this file for what a phase is made of."""

    def __init__(self, size: Size, device: torch.device):
        self.size, self.device = size, device
        self.timed = size.blocks * size.block
        self.steps = size.warm + self.timed + 3 * (device.type == "cuda")
        self.phases: list[dict[str, Any]] = []
        self._open = ExitStack()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin whatever begins with this step."""
        at = batch_idx % self.steps
        if at == 0:
            peak_gib(self.device)
            self.phases.append({"blocks": [], "waits": Counter()})
        counted = at - self.size.warm
        if at == 0 or (0 <= counted < self.timed and counted % self.size.block == 0):
            self._began = finish(self.device)
        elif counted == self.timed:
            self._open.enter_context(counted_waits(self.phases[-1]["waits"]))
        elif counted == self.timed + 1:
            finish(self.device)
            self._profile = None
            try:
                self._profile = self._open.enter_context(profile(activities=[ProfilerActivity.CUDA]))
            except Exception as error:  # the seconds are worth having without it
                self.phases[-1]["profiler"] = repr(error)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, out: Any, batch: Any, batch_idx: int
    ) -> None:
        """End whatever ends with this step."""
        at, phase = batch_idx % self.steps, self.phases[-1]
        counted = at - self.size.warm
        if at == 0:
            phase["first"] = finish(self.device) - self._began
            phase["loss"] = float(out["loss"])
        if 0 <= counted < self.timed and (counted + 1) % self.size.block == 0:
            phase["blocks"].append((finish(self.device) - self._began) / self.size.block)
        if counted == self.timed - 1:
            phase["seconds"] = statistics.median(phase["blocks"])
            phase["peak_gib"] = peak_gib(self.device)
        elif counted == self.timed:
            self._open.close()
        elif counted == self.timed + 2:
            finish(self.device)
            self._open.close()
            if self._profile is not None:
                phase.update(kernel_times(self._profile.events() or [], steps=2))


class ValidationClock(Callback):
    """Times validation images after four."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def on_validation_batch_start(self, *arguments: Any) -> None:
        """Begin with the fifth image."""
        if arguments[3] == 4:
            self._began = finish(self.device)

    def on_validation_batch_end(self, *arguments: Any) -> None:
        """End with any; the last one counts."""
        if arguments[4] >= 4:
            self.seconds = finish(self.device) - self._began


# Parts


def measure_tests(size: Size, device: torch.device) -> dict[str, Any]:
    """Counts of the tests that are marked ``gpu``, and what pytest says of those that fail."""
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "--tb=short", "-rfEs",
               "--continue-on-collection-errors", *files]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)  # noqa: S603
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        output = f"{error}\n{error.stdout!s}"
    counts = re.findall(r"(\d+) (passed|failed|skipped|error|deselected)", output.strip()[-400:])
    return {"counts": {name: int(number) for number, name in counts}, "output": output[-12000:]}


class TritonPAR(PixelAdaptiveRefinement):
    """PAR by the kernels of ``par_triton.py``, which nobody has timed before."""

    @torch.no_grad()
    def forward(self, image: Tensor, maps: Tensor, extent: Tensor | None = None) -> Tensor:
        """As the parent's, without gradient, in float32."""
        dilations = torch.tensor([dx for dy, dx in self.offsets if dy == 0 and dx > 0], device=image.device)
        position = self.position_kernel.to(image.device)
        weights = par_triton.kernel(image.float(), dilations.int(), self.color_width, position, extent)
        return par_triton.iterate(weights, maps.float(), dilations.int(), self.num_iter, extent)


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
    "plain": PixelAdaptiveRefinement, "triton": TritonPAR, "compiled": CompiledPAR,
}  # fmt: skip
"""Of PAR, by what `Case.par` calls them."""


@torch.no_grad()
def measure_par(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """Each form of PAR in turn: median milliseconds, memory, and the difference to float64."""
    kinds = FORMS if device.type == "cuda" else {"plain": PixelAdaptiveRefinement}
    forms = {name: kind().to(device) for name, kind in kinds.items()}
    return [row for maps in size.maps for row in _par_rows(forms, maps, size, device)]


def _par_rows(
    forms: dict[str, PixelAdaptiveRefinement], maps: int, size: Size, device: torch.device
) -> list[dict[str, Any]]:
    side = size.crop // 2
    image = (make_batch(size.batch, side, side, 2)["image"] / 6 + 0.5).clamp(0, 1).to(device)
    scores = torch.rand(size.batch, maps, side, side, device=device)
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
    for _ in range(size.rounds):
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


def measure_steps(size: Size, device: torch.device, case: Case) -> dict[str, Any]:
    """Seconds, memory, idle share and waits of a training step in each phase."""
    torch.backends.cuda.matmul.allow_tf32 = case.tf32 == "on"
    torch.backends.cudnn.allow_tf32 = case.tf32 != "off"
    watch = Stopwatch(size, device)
    if case.method == "afa":
        module = build_module([*size.overrides, *case.overrides], size.classes, watch.steps)
        lengths, crop, count = PHASES, case.crop or size.crop, size.batch
    else:
        module, crop, count, length = build_other(case, size)
        lengths = (length,)
    steps = len(lengths) * watch.steps
    if case.compiled:
        module.compile_network()
    batches = [make_batch(count, crop, crop, size.classes) for _ in range(4)]
    if case.method == "toco":
        for batch in batches:
            batch["views"] = {"local": batch["image"].flip(-1), "global": batch["image"].flip(-2)}
    trainer = make_trainer(device, case.precision, steps, watch)
    if case.par != "plain":
        find_par(module).__class__ = FORMS[case.par]
    trainer.fit(module, loader([batches[i % 4] for i in range(steps)], device))
    for phase in watch.phases:
        if "busy" in phase and "seconds" in phase:
            phase["idle"] = max(0.0, 1 - phase["busy"] / phase["seconds"])
    assert trainer.global_step == steps
    counters = torch._dynamo.utils.counters
    return {
        "phases": watch.phases,
        "crop": crop,
        "batch": count,
        "steps": sum(lengths),
        "hours": sum(p["seconds"] * length for p, length in zip(watch.phases, lengths, strict=True)) / 3600,
        "compiler": dict(counters["stats"]) | {"graph_breaks": sum(counters["graph_break"].values())},
    }


def measure_validation(
    size: Size, device: torch.device, overrides: Sequence[str], precision: str
) -> dict[str, float]:
    """Images a second of ``Trainer.validate``, one at a time, of VOC's usual sizes."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    protocol = instantiate(compose("evaluate", ["ckpt=none", *overrides]).protocol)
    module = build_module(size.overrides, size.classes, protocol=protocol)
    sides = [(375, 500), (500, 375)] if size.crop == 512 else [(72, 96), (96, 72)]
    photos = [make_batch(1, *side, size.classes) for side in sides]
    for photo, side in zip(photos, sides, strict=True):
        photo["mask"] = torch.randint(size.classes + 1, (1, *side))
    count = 2 * max(1, (size.photos // 6 if module.protocol.crf is not None else size.photos) // 2)
    watch = ValidationClock(device)
    trainer = make_trainer(device, precision, 1, watch)
    peak_gib(device)
    trainer.validate(module, loader(photos * (count // 2 + 2), device), verbose=False)
    return {"images": count, "images_per_second": count / watch.seconds, "peak_gib": peak_gib(device) or 0.0}


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
    measure = partial(measure_steps, case=case)
    if case.compiled:
        return Part("compiled", f"{name}, compiled", seconds, measure, case._asdict())
    return Part("eager", name, seconds, measure, case._asdict())


def _runs_on_a_cpu(case: Case) -> bool:
    return not (case.compiled or case.par == "compiled" or case.precision == "16-mixed")


def plan(device: torch.device) -> list[Part]:
    """All parts, the most important first."""
    steps = [_step_part(case) for case in CASES if device.type == "cuda" or _runs_on_a_cpu(case)]
    validations = [
        Part(
            "validation", f"validation: {name}, {precision}", 15,
            partial(measure_validation, overrides=overrides, precision=precision),
            {"name": name, "precision": precision},
        )
        for name, overrides, precision in PROTOCOLS
    ]  # fmt: skip
    tests, par = Part("tests", "tests", 60, measure_tests), Part("par", "PAR", 60, measure_par)
    eager = [part for part in steps if part.kind == "eager"]
    rest = [part for part in steps if part.kind != "eager"]
    return [
        tests,
        *eager[:1],
        par,
        *eager[1:12],
        *rest[:1],
        *eager[12:],
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
            f"{entry['took']:6.1f} s  {part.name}  {_last_line(entry.get('error', 'done'))}",
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


# Tables


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [report["title"], "", "```bash", report["command"], "```", ""]
    done: dict[str, list[dict[str, Any]]] = {}
    for entry in report["parts"].values():
        if "result" in entry:
            done.setdefault(entry["kind"], []).append(entry)
    for entry in done.get("tests", []):
        counts = entry["result"]["counts"].items()
        lines += ["Tests marked `gpu`: " + ", ".join(f"{n} {name}" for name, n in counts) + ".", ""]
    lines += _par_table([row for entry in done.get("par", []) for row in entry["result"]])
    lines += _step_table(done.get("eager", []) + done.get("compiled", []))
    lines += _validation_table(done.get("validation", []))
    missing = {name: entry["error"] for name, entry in report["parts"].items() if "error" in entry}
    lines += [f"- {name}: {_last_line(error)}" for name, error in missing.items()]
    return "\n".join(lines)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [list(columns), ["---"] * len(columns), *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in cells] + [""] if rows else []


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _par_table(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("PAR", "maps", "ms", "MiB beside its input", "largest difference to float64", "first run, s")
    return _table(
        columns,
        [
            (row["form"], row["maps"], _number(row["ms"], 3), _number(row.get("extra_mib"), 0),
             f"{row['difference']:.1e}" if "difference" in row else "failed", _number(row.get("first"), 1))
            for row in rows
        ],
    )  # fmt: skip


def _step_table(entries: list[dict[str, Any]]) -> list[str]:
    columns = (
        "training step", "batch × crop", "precision", "TF32", "compiled", "PAR", "ms, by phase", "peak GiB",
        "GPU idle", "waits", "first steps, s", "h of the run",
    )  # fmt: skip
    rows = []
    for entry in entries:
        row, phases = entry["row"], entry["result"]["phases"]
        rows.append(
            (
                row["name"], f"{entry['result']['batch']} × {entry['result']['crop']}",
                row["precision"], row["tf32"], "yes" if row["compiled"] else "no", row["par"],
                " / ".join(_number(1e3 * phase["seconds"], 1) for phase in phases),
                " / ".join(_number(phase["peak_gib"], 1) for phase in phases),
                " / ".join(f"{phase['idle']:.0%}" if "idle" in phase else "" for phase in phases),
                " / ".join(str(sum(phase["waits"].values())) for phase in phases),
                " / ".join(_number(phase["first"], 1) for phase in phases),
                _number(entry["result"]["hours"]),
            )
        )  # fmt: skip
    return _table(columns, rows) + _wait_lines(entries)


def _wait_lines(entries: list[dict[str, Any]]) -> list[str]:
    """Where the first case's third phase waits for the GPU."""
    waits = entries[0]["result"]["phases"][-1]["waits"] if entries else {}
    lines = [f"- {count} × `{where}`" for where, count in waits.items()]
    return ["Where a step of the third phase waits for the GPU:", "", *lines, ""] if lines else []


def _validation_table(entries: list[dict[str, Any]]) -> list[str]:
    columns = ("validation", "precision", "images a second", "peak GiB")
    rows = [
        (entry["row"]["name"], entry["row"]["precision"], _number(entry["result"]["images_per_second"]),
         _number(entry["result"]["peak_gib"]))
        for entry in entries
    ]  # fmt: skip
    return _table(columns, rows)


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
    device, size = torch.device(options.device), SMALL if options.small else Size()
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
