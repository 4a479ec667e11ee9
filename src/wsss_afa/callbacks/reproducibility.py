"""Runs that repeat: what is drawn in a step depends on the step alone, and a run's numbers stay with it."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from wsss_afa.callbacks.checkpoints import SETTINGS_KEY
from wsss_afa.files import write_whole

_FREE = (
    "data.root", "data.cache_dir", "data.num_workers", "backbone.pretrained",
    "backbone.activation_checkpointing", "optim.max_steps",
)  # fmt: skip
"""Settings that a resumed run may change: where files lie, how fast it goes, how long it is."""


def binding_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a run and its continuation must share of the whole resolved configuration, by dotted name."""
    flat = _flatten({name: config[name] for name in ("seed", "data", "method", "backbone", "optim")})
    flat["trainer.accumulate_grad_batches"] = config["trainer"]["accumulate_grad_batches"]
    return {name: value for name, value in flat.items() if name not in _FREE}


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


class StepSeeds(Callback):
    """Dropout and drop path as a function of (run's seed, step, micro-batch, process), as the batches are."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators, of all devices; the batch's index counts from the run's beginning."""
        entropy = (self.seed, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class RunRecord(Callback):
    """Write ``run.json`` into the run's directory: seeds, versions, commit, device, where it resumed.

    The settings, from `binding_settings`, go into checkpoints.
    """

    def __init__(self, directory: str, settings: dict[str, Any]):
        self.path, self.settings = Path(directory) / "run.json", settings

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write or extend the record."""
        if not trainer.is_global_zero:
            return
        starts = json.loads(self.path.read_text())["started_at_step"] if self.path.is_file() else []
        seeds = {name: value for name, value in self.settings.items() if name.split(".")[-1].endswith("seed")}
        record = {
            "seeds": seeds,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": trainer.world_size,
            "device": torch.cuda.get_device_name() if pl_module.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__}
            | {"lightning": L.__version__, "numpy": np.__version__},
            "commit": source_commit(),
            "started_at_step": [*starts, trainer.global_step] if trainer.global_step else [0],
        }
        write_whole(self.path, json.dumps(record, indent=2) + "\n")

    def on_save_checkpoint(self, trainer: L.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Add the settings."""
        checkpoint[SETTINGS_KEY] = self.settings


def source_commit() -> str | None:
    """Git commit of the package's sources, ``-dirty`` where they differ from it; None outside a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class KeepMetrics(Callback):
    """Go on with the run directory's earlier ``metrics.csv``, from the row at which the checkpoint was taken.

    Lightning's logger begins by deleting the file, so a copy lies beside it until its rows are back.
    """

    def __init__(self, directory: str):
        self.path, self._rows = Path(directory) / "metrics.csv", 0
        self._copy = self.path.with_name("metrics.csv.earlier")
        if self.path.is_file() and not self._copy.is_file():
            rank_zero_only(write_whole)(self._copy, self.path.read_bytes())

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are."""
        return {"rows": len(_read_rows(self.path))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """How many rows there were."""
        self._rows = state_dict["rows"]

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Give the rows back to the logger; those of steps that will be repeated are left out."""
        if not trainer.is_global_zero:
            return
        kept = _read_rows(self._copy)[: self._rows]
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and kept:
                logger.experiment.metrics = kept  # text of numbers
                logger.save()
        self._copy.unlink(missing_ok=True)


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
