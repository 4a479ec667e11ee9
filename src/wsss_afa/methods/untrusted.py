"""Reading a file of tensors that a stranger may have written: no code is run, and nothing outgrows the file.

A few bytes can ask for any amount of memory: by compression, by a tensor whose strides are 0, by a storage
that is larger than what was written, or by a container that holds itself many times over. Files that training
wrote do none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss_afa.files import check_stored

_MAX_VALUES, _MAX_DEPTH = 200_000, 50


class UnreadableError(ValueError):
    """What a file holds, or that it is torn; the reason in one line."""


def read_plain(path: Path, mmap: bool = False) -> Mapping[str, Any]:
    """Tensors and plain containers of a file, on the CPU; with ``mmap`` tensors stay on the disk until used.

    Raises:
        UnreadableError: the file is torn, holds anything else, or asks for more memory than it has bytes.
        OSError: the disk does not give it now; nothing is known of what it holds.
        MemoryError: there is too little for it.
    """
    try:
        check_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the readers of zip files and pickles raise nearly anything
        reason = (str(error) or repr(error)).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # torch's text says how to run the code in it
            reason = "it names other things"
        raise UnreadableError(f"cannot be read as tensors and plain containers: {reason}") from error
    if not isinstance(content, Mapping):
        raise UnreadableError(f"holds a {type(content).__name__}, need weights by name: give another file")
    _Measure(path.stat().st_size).add(content, 0)
    return content


class _Measure:
    """Counts what a file holds, and gives up once that is more than it can be."""

    def __init__(self, size: int):
        self.bytes, self.values = size, _MAX_VALUES

    def add(self, content: Any, depth: int) -> None:
        """Count a value that stands so deep, and those in it."""
        self.values -= 1
        if depth > _MAX_DEPTH or self.values < 0:
            raise UnreadableError(f"more than {_MAX_VALUES} values, or {_MAX_DEPTH} levels of them")
        if isinstance(content, Tensor):
            self._add_tensor(content)
        elif isinstance(content, Mapping):
            for key, value in content.items():
                self.add(key, depth + 1)
                self.add(value, depth + 1)
        elif isinstance(content, list | tuple | set):
            for value in content:
                self.add(value, depth + 1)

    def _add_tensor(self, tensor: Tensor) -> None:
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise UnreadableError(
                f"a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}, need plain numbers"
            )
        self.bytes -= tensor.numel() * tensor.element_size()
        if self.bytes < 0:
            raise UnreadableError("its tensors are larger than the file")
