"""What ``gpu.py`` measures: tests, PAR, training steps and validation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import lightning as L
import torch
import torch._dynamo.utils
import torch.nn.functional as F
from gpu_clock import Stopwatch, ValidationClock, peak_gib
from gpu_par import FORMS, measure_par
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from torch import nn
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
    """The library's PAR (plain), or as `CompiledPAR` (compiled)."""


OTHERS = ("toco", "more", "weclip", "weclip_plus", "excel")
"""Methods that are measured beside AFA."""
VIT = ("backbone=dinov2_small",)
CASES = (
    Case("AFA", precision="bf16-mixed"),
    Case("AFA, DINOv2 ViT-S/14", VIT, precision="bf16-mixed", crop=448),
    Case("AFA"),
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


def measure_refinement(size: Size, device: torch.device) -> list[dict[str, Any]]:
    """PAR alone, at half the side of a crop."""
    side = size.crop // 2
    colours = (make_batch(size.batch, side, side, 2)["image"] / 6 + 0.5).clamp(0, 1)
    return measure_par(colours, size.maps, size.rounds, device)


def measure_steps(size: Size, device: torch.device, case: Case) -> dict[str, Any]:
    """Seconds, memory, idle share and waits of a training step in each phase."""
    torch.backends.cuda.matmul.allow_tf32 = case.tf32 == "on"
    torch.backends.cudnn.allow_tf32 = case.tf32 != "off"
    watch = Stopwatch(size.warm, size.blocks, size.block, device)
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
