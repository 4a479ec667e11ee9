"""Programs as functions: what a call returns, and modules that are called by the name of their function."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Quote, QuotedString


class Run(NamedTuple):
    """What a training or an evaluation left behind."""

    folder: Path
    """The run's, with its files; README lists them."""
    scores: dict[str, Any]
    """By name, such as ``val/miou_seg``, in percent: of the best validation, or the last if none counted."""

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint of a training, or its last one where no validation counted."""
        best = self.folder / "checkpoints" / "best.ckpt"
        return best if best.is_file() else best.with_name("last.ckpt")


def read_run(folder: Path) -> Run:
    """The run of a folder; one without validations has no scores."""
    path = folder / "metrics.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Run(folder, record.get("best") or record.get("last", record))


def setting(name: str, value: object) -> str:
    """An override that gives a setting this text, whatever signs are in it."""
    return f"{name}={QuotedString(str(value), Quote.single).with_quotes()}"


def in_folder(folder: str | Path | None) -> list[str]:
    """The override that names the folder of a run, if there is one."""
    return [] if folder is None else [setting("hydra.run.dir", Path(folder).expanduser())]


def let_call(module: str, function: Callable[..., Run]) -> None:
    """Let a module be called as its function: both have one name, ``wsss_afa.train``, and so one object."""
    members = {
        "__call__": lambda _, *args, **kwargs: function(*args, **kwargs),
        "__signature__": inspect.signature(function),
    }
    sys.modules[module].__class__ = type("CallableModule", (ModuleType,), members)
