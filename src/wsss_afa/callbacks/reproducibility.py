"""Runs that repeat: what is drawn in a step depends on the step alone, and a run's numbers stay with it."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.callbacks import Callback

from wsss_afa.callbacks.binding import DATA_KEY, SETTINGS_KEY, RunData
from wsss_afa.files import write_whole
from wsss_afa.loggers.metrics_file import MetricsFile, MetricsRows


class StepSeeds(Callback):
    """Dropout and drop path as a function of (run's seed, step, micro-batch, process), as the batches are."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, _: Any, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators, of all devices; the batch's index counts from the run's beginning."""
        entropy = (self.seed, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class RunRecord(Callback):
    """Write ``run.json`` into the run's directory: seeds, versions, commit, first weights, where it resumed.

    The settings, from `binding_settings`, and what the data is go into checkpoints.
    """

    def __init__(self, directory: str, settings: dict[str, Any], data: RunData | None = None):
        self.path, self.settings, self.data = Path(directory) / "run.json", settings, data

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write or extend the record."""
        if not trainer.is_global_zero:
            return
        seeds = {
            name: value
            for name, value in self.settings.items()
            if name.endswith("seed") and not name.startswith("callbacks.")
        }
        record = {
            "seeds": seeds,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "processes": trainer.world_size,
            "device": torch.cuda.get_device_name() if pl_module.device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__}
            | {"lightning": L.__version__, "numpy": np.__version__},
            "commit": source_commit(),
            "backbone": first_weights(pl_module),
            "started_at_step": [*self._starts(), trainer.global_step] if trainer.global_step else [0],
        }
        write_whole(self.path, json.dumps(record, indent=2) + "\n")

    def _starts(self) -> list[int]:
        """Where the run started before; what cannot be read of it is said, and left out."""
        try:
            starts = json.loads(self.path.read_text("utf-8"))["started_at_step"]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            rank_zero_warn(
                f"{self.path} cannot be read, its earlier starts are lost ({type(error).__name__})"
            )
            return []
        return starts if isinstance(starts, list) else []

    def on_save_checkpoint(self, trainer: L.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        """Add the settings and what the data is."""
        checkpoint[SETTINGS_KEY] = self.settings
        if self.data is not None:
            checkpoint[DATA_KEY] = self.data.record()


def first_weights(method: L.LightningModule) -> dict[str, str | None]:
    """Source and SHA-256 of the file that the backbone began with, None where it was random."""
    backbone = getattr(method, "backbone", None)
    return {name: getattr(backbone, name, None) for name in ("source", "sha256")}


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
    """Go on with the folder's earlier ``metrics.csv``, from the row at which the checkpoint was taken."""

    def __init__(self) -> None:
        self._rows = 0
        self._file: MetricsRows | None = None

    def state_dict(self) -> dict[str, Any]:
        """How many rows there are; before a checkpoint counts them, they are on the disk if it takes them."""
        if self._file is None:
            return {"rows": 0}
        self._file.sync()
        return {"rows": len(self._file.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """How many rows there were."""
        self._rows = state_dict["rows"]

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Give the rows back to the logger; those of steps that will be repeated are left out."""
        files = [logger.experiment for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        if not trainer.is_global_zero or not files:
            return
        self._file = files[0]
        expected = self._file.path.exists() or self._is_of_this_run(trainer.ckpt_path)
        if (missing := self._file.keep(self._rows)) and expected:
            path = f"{self._file.path} lacks {missing} of the {self._rows} rows that were logged so far"
            rank_zero_warn(f"{path}, and goes on without them; what was left of it is in metrics.csv.damaged")

    def _is_of_this_run(self, checkpoint: str | Path | None) -> bool:
        """Whether the checkpoint lies below the rows; that of another folder has its rows there."""
        assert self._file is not None
        return (
            checkpoint is not None and self._file.path.parent.resolve() in Path(checkpoint).resolve().parents
        )
