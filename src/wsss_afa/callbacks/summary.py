"""What a training run says: what it is about to do, how it gets on, and what it leaves.

On a terminal the lines stand above the progress bar. Elsewhere, as in the log of a cluster's job, there is no
bar, and a plain line every tenth of the steps or five minutes shows that the run lives. Expected hours are
said when they are measured (`wsss_afa.callbacks.pace`): once in each phase, after its first steps.
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich import get_console
from torch import nn

from wsss_afa.callbacks.pace import COUNTED, Pace, format_seconds, plan
from wsss_afa.callbacks.progress import SILENCE, is_watched
from wsss_afa.callbacks.scores import Results
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.methods.base import Method
from wsss_afa.metrics import COLUMNS


def say(word: str, text: str) -> None:
    """Print one line that begins with a word, above the progress bar if there is one."""
    get_console().print(f"{word:<9} {text}", soft_wrap=True, markup=False, highlight=False)


class Summary(Callback):
    """Say what a run does: its setting at the start, scores and pace on the way, at the end what is where.

    Args:
        directory: the run's folder.
        config: the whole configuration, resolved.
        data: the chosen file of ``conf/data``.
        overrides: the command line's, as Hydra has them.
    """

    def __init__(self, directory: str, config: dict[str, Any], data: str, overrides: Sequence[str]):
        self.directory = _shorten(Path(directory))
        self.config = config
        self.data = data
        self.data_overrides = [word for word in overrides if word.lstrip("+").startswith("data.")]
        self._pace = Pace((), 0.0)
        self._start = self._done = 0
        self._said = (0, 0.0)  # tenths of the run, clock
        self._told: set[int] = set()
        self._watched = is_watched()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what begins, and start measuring."""
        assert isinstance(pl_module, Method)
        now = time.monotonic()
        self._pace = Pace(plan(pl_module.phases, trainer.max_steps), now)
        self._start = self._done = trainer.global_step
        self._said = (10 * self._start // trainer.max_steps, now)
        if trainer.is_global_zero:
            for word, text in self._opening(trainer, pl_module):
                say(word, text)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the step, and say how it gets on if that is due."""
        done, now = trainer.global_step, time.monotonic()
        if not trainer.is_global_zero or done == self._done:  # a part of a step
            return
        self._done = done
        self._pace.count_step(done - 1, now)
        phase = self._pace.phase_of(done - 1)
        if self._pace.measured(phase) >= COUNTED and phase not in self._told:
            self._told.add(phase)
            say("pace", self._forecast(trainer, phase))
        tenth = 10 * done // trainer.max_steps
        if not self._watched and (tenth > self._said[0] or now - self._said[1] > SILENCE):
            self._said = (tenth, now)
            say("step", self._standing(trainer, phase))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock of training."""
        self._pace.begin_validation(time.monotonic())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say the scores."""
        self._pace.end_validation(time.monotonic())
        if trainer.is_global_zero and not trainer.sanity_checking:
            say("validated", f"step {trainer.global_step}: {_scores(trainer.callback_metrics)}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say what came of it, and what to do with it."""
        if trainer.is_global_zero:
            for word, text in self._closing(trainer):
                say(word, text)

    def _opening(self, trainer: L.Trainer, module: Method) -> list[tuple[str, str]]:
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning attaches it
        phases = self._pace.phases
        position = ""
        if 0 < self._start < trainer.max_steps:
            phase = self._pace.phase_of(self._start) + 1
            position = f"; at step {self._start}, phase {phase} of {len(phases)}"
        return [
            ("run", f"{self.directory}, {trainer.max_steps} steps{position}"),
            ("data", f"{self.data}: {describe_data(data)}"),
            ("model", f"{_encoder(self.config['backbone'])}: {describe_parameters(module.net)}"),
            ("phases", f"{', '.join(map(str, phases))} (steps, from 0)"),
            ("batch", describe_batch(trainer, data)),
            ("device", describe_device(trainer, module)),
        ]

    def _forecast(self, trainer: L.Trainer, phase: int) -> str:
        phases, seconds = self._pace.phases, self._pace.step_seconds(phase)
        assert seconds is not None
        text = f"{seconds:.3g} s a step in phase {phase + 1} of {len(phases)} ({phases[phase].name}): "
        text += self._to_go(trainer)
        if phase + 1 < len(phases):
            ratio = phases[phase + 1].cost / phases[phase].cost
            text += f" if later steps cost {'the same' if ratio == 1 else f'{ratio:.1f} times as much'}"
        if self._pace.last_validation is None and (left := _validations_left(trainer)):
            text += f", and {left} validations"
        return text

    def _standing(self, trainer: L.Trainer, phase: int) -> str:
        done, total, phases = trainer.global_step, trainer.max_steps, self._pace.phases
        text = f"{done} of {total} ({100 * done // total} %), phase {phase + 1} of {len(phases)}"
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            text += f": loss {loss.item():.3g}"
        gone = format_seconds(self._pace.training + self._pace.validation)
        return f"{text}; {gone} gone, {self._to_go(trainer)}"

    def _to_go(self, trainer: L.Trainer) -> str:
        seconds = self._pace.remaining(trainer.global_step, _validations_left(trainer))
        return "not yet measured" if seconds is None else f"about {format_seconds(seconds)} to go"

    def _closing(self, trainer: L.Trainer) -> list[tuple[str, str]]:
        folder = self.directory / "checkpoints"
        files = [name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()]
        curves = self.directory / "metrics.csv"
        lines = [("done", self._effort(trainer)), *_best(trainer)]
        lines += [("curves", str(curves))] * curves.is_file()
        if files:
            data = shlex.join([f"data={self.data}", *self.data_overrides])
            lines += [
                ("weights", ", ".join(str(folder / name) for name in files)),
                ("next", f"python -m wsss_afa.evaluate ckpt={folder / files[0]} {data}"),
                ("", f"python -m wsss_afa.predict ckpt={folder / files[0]} source=PHOTOS"),
            ]
        return lines

    def _effort(self, trainer: L.Trainer) -> str:
        pace, steps = self._pace, self._done - self._start
        if not steps:
            return f"nothing was left to do after step {trainer.global_step} of {trainer.max_steps}"
        images = steps * self.config["data"]["batch_size"] / pace.training
        whole, validation = format_seconds(pace.training + pace.validation), format_seconds(pace.validation)
        return (
            f"{steps} steps in {whole}, of it {validation} in validation; {images:.3g} images/s in training"
        )


def describe_data(data: TaggedDataModule) -> str:
    """Images, tags and classes; ``setup("fit")`` comes first."""
    tags = data.train_tags
    text = f"{len(tags)} training images with {tags.sum() / max(1, len(tags)):.1f} tags each"
    if data.num_val_images:
        text += f", {data.num_val_images} validation images with{'' if data.has_masks else 'out'} masks"
    return f"{text}, {data.num_classes} classes"


def describe_parameters(net: nn.Module) -> str:
    """Parameters of each part, in millions where there are as many."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    texts = [
        f"{name.replace('_', ' ')} {count / 1e6:.1f} M"
        if count >= 1e5
        else f"{name.replace('_', ' ')} {count}"
        for name, count in counts.items()
    ]
    return f"{', '.join(texts)} parameters"


def describe_batch(trainer: L.Trainer, data: TaggedDataModule) -> str:
    """Images of a step, how they are shared out, and how often the run sees each."""
    world, parts = trainer.world_size, trainer.accumulate_grad_batches
    factors = f"{world} process{'es' if world > 1 else ''} × {data.batch_size // (world * parts)}"
    if parts > 1:
        factors += f" × {parts} parts"
    passes = trainer.max_steps * data.batch_size / max(1, data.num_train_images)
    return f"{data.batch_size} images a step, {factors}; the run sees each image {passes:.2g} times"


def describe_device(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Where it runs and in which precision."""
    cuda = module.device.type == "cuda"
    name = torch.cuda.get_device_name(module.device) if cuda else f"CPU ({platform.machine()})"
    nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
    count = f"{trainer.world_size} × " if cuda and trainer.world_size > 1 else ""
    threads = "" if cuda else f", threads of a process: {torch.get_num_threads()}"
    return f"{count}{name}{nodes}, {trainer.precision}{threads}"


def _encoder(backbone: dict[str, Any]) -> str:
    kind = backbone["_target_"].rpartition(".")[2]
    weights = backbone["pretrained"]
    origin = "random weights" if weights is None else f"weights {'of timm' if weights is True else weights}"
    return f"{kind} {backbone.get('variant') or backbone.get('name')}, {origin}"


def _scores(metrics: dict[str, torch.Tensor]) -> str:
    texts = [
        f"{title} {100 * metrics[name].item():.1f}"
        for source, title in COLUMNS.items()
        if (name := f"val/miou_{source}") in metrics
    ]
    texts.append(f"mAP {100 * metrics['val/map_cls'].item():.1f}")
    return f"{', '.join(texts)} %"


def _best(trainer: L.Trainer) -> list[tuple[str, str]]:
    results = next((each.results for each in trainer.callbacks if isinstance(each, Results)), {})  # type: ignore[attr-defined]
    checkpoint = trainer.checkpoint_callback
    if "best" not in results or not isinstance(checkpoint, ModelCheckpoint):
        return []
    monitor = str(checkpoint.monitor)
    title = COLUMNS.get(monitor.removeprefix("val/miou_"), "mAP")
    best, last = (f"{results[of][monitor]:.1f} % at step {results[of]['step']}" for of in ("best", "last"))
    return [("best", f"{title} {best}; last {last}")]


def _validations_left(trainer: L.Trainer) -> int:
    """Validations to come, that of the last step included."""
    interval = trainer.val_check_batch
    if not trainer.enable_validation or not interval:
        return 0
    parts = trainer.accumulate_grad_batches
    total, done = trainer.max_steps * parts, trainer.global_step * parts
    return -(-total // int(min(interval, total))) - done // int(min(interval, total))


def _shorten(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
