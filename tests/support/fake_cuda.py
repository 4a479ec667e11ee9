"""Tensors that say they are on a GPU where there is none: they have shapes and devices, but no numbers.

Two tensors that meet on different devices raise. A value that Python reads from a tensor "on the GPU" is
made up, and counted: on a GPU, the program would stand still there until all work so far is done.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torchmetrics import Metric

import wsss_afa
from wsss_afa.ops.affinity import radius_mask
from wsss_afa.types import Batch

PACKAGE = str(Path(wsss_afa.__file__).parent)
VALUES = {torch.bool: True, torch.float32: 0.5, torch.float64: 0.5}
"""What is read from a tensor of each type; 2 from others."""


class FakeCuda(TorchDispatchMode):
    """Counts by function what is read, in ``waits``: ``with FakeTensorMode(), FakeCuda() as gpu: …``."""

    def __init__(self) -> None:
        super().__init__()
        radius_mask.cache_clear()  # of tensors with numbers
        self.waits: Counter[str] = Counter()

    def __exit__(self, *error: Any) -> None:
        """Leave, and leave no tensor without numbers where others would find it."""
        super().__exit__(*error)
        radius_mask.cache_clear()

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what depends on numbers, and leave the rest to the fake tensors."""
        aten, kwargs = torch.ops.aten, kwargs or {}
        if func is aten._local_scalar_dense.default:
            self._count(args[0])
            return VALUES.get(args[0].dtype, 2)
        if func is aten.nonzero.default:
            self._count(args[0])
            return args[0].new_empty((2, args[0].dim()), dtype=torch.long)
        if func is aten.bincount.default:
            self._count(args[0])
            return args[0].new_empty(kwargs.get("minlength", args[-1]), dtype=torch.long)
        return func(*args, **kwargs)

    def box_mask(self, maps: Tensor, *_: Any) -> Tensor:
        """In the place of `wsss_afa.ops.attention_walk.box_mask`, which hands its maps to another library."""
        self.waits["box_mask"] += maps.device.type == "cuda"
        return torch.ones_like(maps, dtype=torch.bool)

    def _count(self, source: Tensor) -> None:
        frames = [each.name for each in traceback.extract_stack() if each.filename.startswith(PACKAGE)]
        self.waits[frames[-1]] += source.device.type == "cuda"


def on_gpu(value: Batch) -> Batch:
    """A batch with fake tensors on the GPU in the place of its tensors; seeds stay on the CPU."""

    def moved(each: Any) -> Any:
        if not isinstance(each, Tensor):
            return each
        return torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda")

    fake = tree_map(moved, value)
    return fake | {"seed": torch.empty(value["seed"].shape, dtype=torch.long)} if "seed" in value else fake


def move_to_gpu(module: nn.Module) -> None:
    """Put fake parameters, buffers and states of metrics in the place of a module's own."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
                each._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        for name, state in each._defaults.items() if isinstance(each, Metric) else ():
            if isinstance(state, Tensor):
                setattr(each, name, torch.empty(state.shape, dtype=state.dtype, device="cuda"))


__all__ = ["FakeCuda", "FakeTensorMode", "move_to_gpu", "on_gpu"]
