"""What ``gpu.py`` measures with: seconds, memory, waits and kernels of a Trainer's steps."""

from __future__ import annotations

import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

SOURCES = str(Path(__file__).resolve().parents[1] / "src")


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
    ours = [frame for frame in stack if SOURCES in frame.filename]
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
    """Times steps of each phase; see the top of ``gpu.py`` for what a phase is made of."""

    def __init__(self, warm: int, blocks: int, block: int, device: torch.device):
        self.warm, self.block, self.device = warm, block, device
        self.timed = blocks * block
        self.steps = warm + self.timed + 3 * (device.type == "cuda")
        self.phases: list[dict[str, Any]] = []
        self._open = ExitStack()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin whatever begins with this step."""
        at = batch_idx % self.steps
        if at == 0:
            peak_gib(self.device)
            self.phases.append({"blocks": [], "waits": Counter()})
        counted = at - self.warm
        if at == 0 or (0 <= counted < self.timed and counted % self.block == 0):
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
        counted = at - self.warm
        if at == 0:
            phase["first"] = finish(self.device) - self._began
            phase["loss"] = float(out["loss"])
        if 0 <= counted < self.timed and (counted + 1) % self.block == 0:
            phase["blocks"].append((finish(self.device) - self._began) / self.block)
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
