"""What the forms of golden files share: a row per quantity, and reading a file by its prefixes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

File = dict[str, np.ndarray]


class Row(NamedTuple):
    """One compared quantity; ``difference`` is relative to its scale, or a share of pixels."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # not where it is NaN


def real(name: str, ours: Tensor, theirs: np.ndarray, tolerance: float) -> Row:
    """Largest difference relative to the largest magnitude of the quantity."""
    expected = torch.from_numpy(np.asarray(theirs)).double()
    if ours.shape != expected.shape:
        return Row(f"{name} is {tuple(ours.shape)}, not {tuple(expected.shape)}", float("inf"), tolerance)
    difference = (ours.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
    return Row(name, difference.item(), tolerance)


def labels(name: str, ours: Tensor, theirs: np.ndarray, tolerance: float = 0.0) -> Row:
    """Share of pixels that differ."""
    expected = torch.from_numpy(np.asarray(theirs)).long()
    if ours.shape != expected.shape:
        return Row(f"{name} is {tuple(ours.shape)}, not {tuple(expected.shape)}", float("inf"), tolerance)
    return Row(name, (ours.long() != expected).double().mean().item(), tolerance)


def relative(ours: object, theirs: np.ndarray) -> float:
    """Largest difference of numbers, each relative to its own magnitude."""
    return float(np.abs(np.array(ours) / theirs - 1).max())


def part(file: File, prefix: str) -> dict[str, np.ndarray]:
    """Quantities below a prefix, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in file.items() if name.startswith(f"{prefix}/")}


def state_of(file: File) -> dict[str, Tensor]:
    """The network's weights under the program's names."""
    return {name: torch.from_numpy(value) for name, value in part(file, "state").items()}


def settings(file: File) -> dict[str, Any]:
    """The file's ``meta``."""
    return json.loads(str(file["meta"]))


def complete(file: File, rows: Iterable[Row], prefixes: tuple[str, ...]) -> Iterator[Row]:
    """The rows, and one that is out for each quantity below the prefixes that none of them compares."""
    seen = set()
    for row in rows:
        seen.add(row.name.partition(" is ")[0])
        yield row
    for name in file:
        if name.startswith(prefixes) and name not in seen:
            yield Row(f"{name} is not compared", float("inf"), 0.0)


def compared(
    kind: Callable[..., Row], file: File, ours: Mapping[str, Tensor], tolerance: float
) -> Iterator[Row]:
    """Rows of those quantities that the file has."""
    return (kind(name, value, file[name], tolerance) for name, value in ours.items() if name in file)


def norms(
    file: File, prefix: str, net: nn.Module, names: Mapping[str, Sequence[str]],
    value: Callable[[nn.Parameter], Tensor], tolerance: Callable[[str], float],
) -> Iterator[Row]:  # fmt: skip
    """Norms of parameters, or of their gradients, under the program's names, each of one or more of ours.

    What has no name here is a part that nothing uses or trains: it is as it was.
    """
    for name, theirs in part(file, prefix).items():
        found = [value(net.get_parameter(each)).flatten() for each in names.get(name, ())]
        norm = torch.cat(found or [state_of(file)[name].flatten()]).double().norm().item()
        yield Row(f"{prefix}/{name}", abs(norm - float(theirs)) / max(float(theirs), 1e-12), tolerance(name))
