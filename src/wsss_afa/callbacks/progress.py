"""What a run says on a terminal, in a notebook or in the log of a cluster's job: a bar, and lines.

Lines stand above the bar. Where nobody watches there is no bar, and a plain line every tenth of the steps or
five minutes shows that the run lives.
"""

from __future__ import annotations

import itertools
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from rich.console import Console

from wsss_afa.callbacks.scores import Results
from wsss_afa.data.datamodule import TaggedDataModule
from wsss_afa.errors import say
from wsss_afa.methods.base import Method
from wsss_afa.ops.metrics import RULES, rule_title, titles
from wsss_afa.types import Phase

SILENCE = 300.0
"""Longest time in seconds without a line where there is no bar."""
_WARM_UP, _COUNTED = 5, 20
"""Steps of a phase that are not timed, and timed steps after which a pace is worth telling."""


def is_watched() -> bool:
    """Whether the output is a terminal that can draw, or a notebook; not so the log of a cluster's job."""
    console = Console()
    return console.is_jupyter or (console.is_interactive and sys.stdout.isatty())


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units, as in ``3 h 10 min``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min" if minutes >= 10 else f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class Progress(RichProgressBar):
    """Lightning's bar with steps, time left, loss and learning rate, readable at any magnitude."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3g"))
        self._said = time.monotonic()
        if not is_watched():
            self.disable()

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # a run is one epoch

    def get_metrics(self, *arguments: Any) -> dict[str, int | str | float | dict[str, float]]:
        """What changes from step to step, by short names; scores have lines of their own."""
        metrics = super().get_metrics(*arguments)
        shown = (name for name in ("train/loss", "lr") if name in metrics)
        return {name.removeprefix("train/"): metrics[name] for name in shown}

    def on_validation_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Draw, or say that the validation lives."""
        super().on_validation_batch_end(trainer, *arguments)
        self._tell(trainer, "validation", arguments[3] + 1, trainer.num_val_batches)

    def on_predict_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        """Draw, or say that the pass lives."""
        super().on_predict_batch_end(trainer, *arguments)
        self._tell(trainer, "labels", arguments[3] + 1, trainer.num_predict_batches)

    def _tell(self, trainer: L.Trainer, what: str, done: int, of: list[int | float]) -> None:
        if not is_watched() and trainer.is_global_zero and time.monotonic() > self._said + SILENCE:
            self._said = time.monotonic()
            say(what, f"{done} of {sum(of)} images")


class Summary(Callback):
    """Say what a run does: its setting at the start, scores and pace on the way, at the end what is where.

    Args:
        directory: the run's folder.
        config: the whole configuration, resolved.
        data: the chosen file of ``conf/data``.
        overrides: the command line's, as Hydra has them.
    """

    def __init__(self, directory: str, config: dict[str, Any], data: str, overrides: Sequence[str]):
        folder, here = Path(directory), Path.cwd()
        self.directory = folder.relative_to(here) if folder.is_relative_to(here) else folder
        self.config, self.data = config, data
        self._words = _kept(overrides)
        self._watched = is_watched()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what begins, and start the clock."""
        assert isinstance(pl_module, Method)
        self._phases = [phase for phase in pl_module.phases if phase.first < trainer.max_steps]
        self._start = self._done = trainer.global_step
        self._said, self._tenth = time.monotonic(), 10 * self._start // trainer.max_steps
        self._validation = 0.0
        self._began = self._now = self._clock()
        self._phase, self._steps = -1, 0  # the phase at hand, and how many of its steps this run has done
        if trainer.is_global_zero:
            self._open(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Time the step, and say how the run gets on if that is due."""
        done, total = trainer.global_step, trainer.max_steps
        if not trainer.is_global_zero or done == self._done:  # a part of a step
            return
        self._count(done)
        where = f"phase {self._phase + 1} of {len(self._phases)}"
        if self._steps == _WARM_UP + _COUNTED:
            more = " if later steps cost the same" if self._phase + 1 < len(self._phases) else ""
            pace = f"{self._pace:.3g} s a step in {where} ({self._phases[self._phase].name})"
            say("pace", f"{pace}: {self._to_go(trainer)}{more}")
        tenth, now = 10 * done // total, time.monotonic()
        if not self._watched and (tenth > self._tenth or now - self._said > SILENCE):
            self._tenth, self._said = tenth, now
            loss = trainer.callback_metrics.get("train/loss")
            text = "" if loss is None else f": loss {loss.item():.3g}"
            gone = format_seconds(self._now - self._began + self._validation)
            progress = f"{done} of {total} ({100 * done // total} %), {where}{text}"
            say("step", f"{progress}; {gone} gone, {self._to_go(trainer)}")

    def on_validation_start(self, *_: Any) -> None:
        """Stop the clock of training."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Let it go on, and say the scores."""
        self._validation += time.monotonic() - self._paused
        if trainer.is_global_zero and not trainer.sanity_checking:
            metrics = {name: 100 * value.item() for name, value in trainer.callback_metrics.items()}
            sources = titles([name.removeprefix("val/miou_") for name in metrics if "/miou_" in name])
            scores = [f"{title} {metrics[f'val/miou_{source}']:.1f}" for source, title in sources.items()]
            if not sources:
                scores.append(f"{RULES['val/agreement']} {metrics['val/agreement']:.1f}")
            scores.append(f"mAP {metrics['val/map_cls']:.1f}")
            say("validated", f"step {trainer.global_step}: {', '.join(scores)} %")

    def teardown(self, trainer: L.Trainer, _: Any, stage: str) -> None:
        """Say what came of it, and what to do with it."""
        if trainer.is_global_zero and hasattr(self, "_began"):
            self._close(trainer)

    def _clock(self) -> float:
        """Seconds that stand still in a validation."""
        return time.monotonic() - self._validation

    def _count(self, done: int) -> None:
        phase = sum(each.first < done for each in self._phases) - 1
        self._steps = self._steps + 1 if phase == self._phase else 1
        self._phase, self._done, self._now = phase, done, self._clock()
        if self._steps <= _WARM_UP:
            self._warm = self._now
        else:
            self._pace = (self._now - self._warm) / (self._steps - _WARM_UP)

    def _to_go(self, trainer: L.Trainer) -> str:
        """Of training alone; validations have lines of their own."""
        if self._steps <= _WARM_UP:
            return "not yet measured"
        return f"about {format_seconds((trainer.max_steps - self._done) * self._pace)} to go"

    def _open(self, trainer: L.Trainer, method: Method) -> None:
        data, total = trainer.datamodule, trainer.max_steps  # type: ignore[attr-defined]  # Lightning attaches it
        position = f"; at step {self._start}" if 0 < self._start < total else ""
        say("run", f"{self.directory}, {total} steps{position}")
        say("data", f"{self.data}: {_describe_data(data)}")
        say("model", _describe_model(self.config["backbone"], method.net))
        say("phases", f"{describe_phases(self._phases, total)} (steps, from 0)")
        for line in too_short(method.phases, self.config.get("optim", {}).get("warmup_steps", 0), total):
            say("warning", line)
        say("batch", _describe_batch(trainer, data))
        say("device", _describe_device(trainer, method.device))

    def _close(self, trainer: L.Trainer) -> None:
        steps, seconds = self._done - self._start, self._now - self._began
        if steps:
            speed = f"{steps * self.config['data']['batch_size'] / seconds:.3g} images/s in training"
            whole, validation = format_seconds(seconds + self._validation), format_seconds(self._validation)
            say("done", f"{steps} steps in {whole}, of it {validation} in validation; {speed}")
        else:
            say("done", f"nothing was left to do after step {trainer.global_step} of {trainer.max_steps}")
        _say_best(trainer)
        if (curves := self.directory / "metrics.csv").is_file():
            say("curves", str(curves))
        files = [self.directory / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
        if files := [file for file in files if file.is_file()]:
            say("weights", ", ".join(map(str, files)))
            data = shlex.join([f"data={self.data}", *self._words])
            options = _own_folder()
            parts = (self.config[name]["_target_"] for name in ("method", "backbone"))
            own = ",".join(part for part in parts if not part.startswith("wsss_afa."))
            trust = f" trust=[{own}]" if own else ""
            ckpt = shlex.join([f"ckpt={files[0]}"])
            say("next", f"wsss-afa evaluate {options}{ckpt} {data}{trust}")
            say("", f"wsss-afa predict {ckpt} source=PHOTOS{trust}")
            if self.data == "folder":
                own_data = shlex.join(word for word in self._words if word.startswith("data."))
                say("", f"wsss-afa app {ckpt} {own_data}{trust}")


def _kept(overrides: Sequence[str]) -> list[str]:
    """What of a training's command line an evaluation reads, too."""
    return [word for word in overrides if _is_evaluated(word.lstrip("+").partition("=")[0])]


def _is_evaluated(name: str) -> bool:
    """Whether a setting of a dotted name is of evaluations as well as of training."""
    training = {f"data.{each}" for each in ("batch_size", "crop_size", "scale", "flip", "balanced", "seed")}
    return name == "trainer.accelerator" or (name.startswith("data.") and name not in training)


def _own_folder() -> str:
    """The option that names a user's folder of settings, as the command line has it."""
    words = sys.argv[1:]
    places = [place for place, word in enumerate(words) if word.partition("=")[0] in ("--config-dir", "-cd")]
    return "".join(shlex.join(words[place : place + 1 + ("=" not in words[place])]) + " " for place in places)


def _describe_data(data: TaggedDataModule) -> str:
    tags = data.train_tags
    text = f"{len(tags)} training images with {tags.sum() / max(1, len(tags)):.1f} tags each"
    if data.num_val_images:
        text += f", {data.num_val_images} validation images with{'' if data.has_masks else 'out'} masks"
    return f"{text}, {data.num_classes} classes"


def _describe_model(backbone: dict[str, Any], net: torch.nn.Module) -> str:
    kind, weights = backbone["_target_"].rpartition(".")[2], backbone.get("pretrained")
    origin = "random weights" if weights is None else f"weights {'of timm' if weights is True else weights}"
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    sizes = {name: f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count}" for name, count in counts.items()}
    parts = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in sizes.items())
    return f"{kind} {backbone.get('variant') or backbone.get('name')}, {origin}: {parts} parameters"


def describe_phases(phases: Sequence[Phase], max_steps: int) -> str:
    """Every phase that has a step, with its first and its last."""
    spans = itertools.pairwise((*phases, Phase("", max_steps)))
    return ", ".join(f"{each.name} {each.first}–{end - 1}" for each, (_, end) in spans if end > each.first)


def too_short(phases: Sequence[Phase], warmup_steps: int, max_steps: int) -> list[str]:
    """What a run of so many steps never comes to; a phase that begins at its very end is meant to be so."""
    late = [phase for phase in phases if phase.first > max_steps]
    lines = [f"{each.name} begins at step {each.first}, this run ends at {max_steps}" for each in late]
    remedies = [f"a smaller method.phases.{each.name}" for each in late]
    if warmup_steps > max_steps:
        lines.append(f"the learning rate rises until step {warmup_steps}, this run ends at {max_steps}")
        remedies.append("smaller optim.warmup_steps")
    return [
        f"{line}: set {remedy}, or more trainer.max_steps"
        for line, remedy in zip(lines, remedies, strict=True)
    ]


def _describe_batch(trainer: L.Trainer, data: TaggedDataModule) -> str:
    world, parts = trainer.world_size, trainer.accumulate_grad_batches
    factors = f"{world} process{'es' * (world > 1)} × {data.batch_size // (world * parts)}"
    factors += f" × {parts} parts" * (parts > 1)
    passes = trainer.max_steps * data.batch_size / max(1, data.num_train_images)
    return f"{data.batch_size} images a step, {factors}; the run sees each image {passes:.2g} times"


def _describe_device(trainer: L.Trainer, device: torch.device) -> str:
    name, threads = f"CPU ({platform.machine()})", f", threads of a process: {torch.get_num_threads()}"
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), ""
    return f"{trainer.world_size} × {name}, {trainer.precision}{threads}"


def _say_best(trainer: L.Trainer) -> None:
    results = next((each.results for each in trainer.callbacks if isinstance(each, Results)), {})  # type: ignore[attr-defined]
    checkpoint = trainer.checkpoint_callback
    if "best" in results and isinstance(checkpoint, ModelCheckpoint):
        name = str(checkpoint.monitor)
        best, last = (f"{results[of][name]:.1f} % at step {results[of]['step']}" for of in ("best", "last"))
        say("best", f"{rule_title(name)} {best}; last {last}")
