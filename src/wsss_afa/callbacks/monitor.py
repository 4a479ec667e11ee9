"""What a training step costs and how large its gradient is."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from wsss_afa.cli.allocator import peak_memory
from wsss_afa.methods.base import AFALightningModule, is_logged
from wsss_afa.types import Batch

PARTS = ("data", "forward", "labels", "backward", "optimizer")
"""Of a step, in its order: waiting for the batch; network and losses; pseudo labels; backward; update."""
_PAUSE = "validation"


class Clock:
    """Time between marks. On a GPU marks are events in its queue, so nothing waits for them.

    Args:
        device: whose time counts.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """End a part, which began at the mark before."""
        moment: Any = time.perf_counter()
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self._marks.append((part, moment))

    def read(self) -> dict[str, float]:
        """Milliseconds of each part since the last reading; waits for the last mark."""
        if self._cuda and self._marks:
            self._marks[-1][1].synchronize()
        times: dict[str, float] = {}
        for (_, start), (part, end) in pairwise(self._marks):
            spent = start.elapsed_time(end) if self._cuda else 1000 * (end - start)
            times[part] = times.get(part, 0.0) + spent
        self._marks = self._marks[-1:]
        return times


class StepMonitor(Callback):
    """Log images per second, milliseconds of each part of a step, memory and the gradient's norm.

    Times are means over the steps since they were last logged, validations left out. A GPU's are
    its own: ``data`` is how long it had nothing to do. The norm is of the logged step, before it is clipped.
    """

    def __init__(self) -> None:
        self._clock = Clock(torch.device("cpu"))
        self._images, self._steps = 0, 0
        self._stepped, self._paused = False, False
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and let it know when pseudo labels are made."""
        assert isinstance(pl_module, AFALightningModule)
        self._clock = Clock(pl_module.device)
        self._images = self._steps = 0
        if trainer.loggers and trainer.log_every_n_steps:  # type: ignore[attr-defined]
            labeler = pl_module.labeler
            self._hooks = [
                labeler.register_forward_pre_hook(lambda *_: self._clock.mark("forward")),
                labeler.register_forward_hook(lambda *_: self._clock.mark("labels")),
            ]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the module as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out what happens until the next batch."""
        self._paused = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """The batch has come."""
        self._mark(_PAUSE if self._paused else "data")
        self._paused = False
        self._images += len(batch["image"]) * trainer.world_size

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Network and losses are done."""
        self._mark("forward")

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The gradient is there."""
        self._mark("backward")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradient of a step that is logged."""
        self._stepped = True
        if self._hooks and is_logged(trainer, trainer.global_step):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the interval that ends with this step, if one does."""
        self._mark("optimizer")
        if not self._stepped:
            return
        self._stepped = False
        self._steps += 1
        if self._hooks and is_logged(trainer, trainer.global_step - 1):
            self._log(pl_module)

    def _mark(self, part: str) -> None:
        if self._hooks:
            self._clock.mark(part)

    def _log(self, module: L.LightningModule) -> None:
        times = self._clock.read()
        times.pop(_PAUSE, None)
        module.log("speed/images_per_s", 1000 * self._images / max(sum(times.values()), 1e-9))
        module.log_dict({f"speed/{part}_ms": times.get(part, 0.0) / self._steps for part in PARTS})
        module.log("speed/memory_gib", peak_memory(module.device))
        self._images = self._steps = 0
