"""How fast training goes, and how large its gradient is.

Lightning's monitors are not used: `ThroughputMonitor` waits for the GPU in every step, `DeviceStatsMonitor`
adds some hundred columns, and it and `LearningRateMonitor` end a run that has no logger.
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from wsss_afa.methods.base import is_logged
from wsss_afa.types import Batch


class StepMonitor(Callback):
    """Log the gradient's norm, images per second and, on a GPU, the most memory so far.

    The norm is of the logged step, before it is clipped. Images per second are of all processes together,
    over the steps since they were last logged, with validations left out.
    """

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self._restart()

    def on_validation_start(self, *_: Any) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Let it go on."""
        if not trainer.sanity_checking:
            self._since += time.perf_counter() - self._paused

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Log the norm of a step that is logged."""
        if trainer.loggers and is_logged(trainer, trainer.global_step):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, _: Any, batch: Batch, *__: Any) -> None:
        """Log the interval that ends with this step, if one does."""
        self._images += len(batch["image"]) * trainer.world_size
        if trainer.global_step == self._step:  # a part of a step that is accumulated
            return
        self._step = trainer.global_step
        if is_logged(trainer, self._step - 1):
            pl_module.log("speed/images_per_s", self._images / (time.perf_counter() - self._since))
            if pl_module.device.type == "cuda":
                pl_module.log("speed/memory_gib", torch.cuda.max_memory_allocated() / 2**30)
            self._restart()

    def _restart(self) -> None:
        self._since, self._images = time.perf_counter(), 0
