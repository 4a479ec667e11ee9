"""Weights & Biases without surprises: a run folder is one run there, and nothing waits for a network."""

from __future__ import annotations

import netrc
import os
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from wsss_afa.errors import say

_HOST = "https://api.wandb.ai"
_SCORES = tuple(f"val/{name}" for name in ("miou_cam", "miou_affinity", "miou_seg", "agreement", "map_cls"))
"""Whose best is shown beside the last."""


class RunFolderWandbLogger(WandbLogger):
    """Lightning's logger with a run for each run folder; offline where there is no key or no answer.

    A folder that is started again goes on with its run. What W&B prints is replaced by one line, which says
    where the run is or how to upload it.

    Args:
        save_dir: the run's folder; W&B's files go into ``wandb/`` in it.
        project: in W&B.
        entity: user or team; None is the key's own.
        name: of the run; None is the folder's name, under its sweep's.
        group: None is the folder of the sweep that the run belongs to, if any.
        id: of the run; None is that of the folder's earlier run, or a new one.
        tags: of the run.
        offline: true writes files alone, for ``wandb sync``, as ``WANDB_MODE=offline`` or ``disabled`` do.
        patience: seconds until a server that does not answer is given up.
        sweep_dir: where a sweep's runs lie.
    """

    def __init__(
        self, save_dir: str, project: str = "wsss_afa", entity: str | None = None, name: str | None = None,
        group: str | None = None, id: str | None = None, tags: list[str] | None = None, offline: bool = False,
        patience: float = 30.0, sweep_dir: str | None = None,
    ):  # fmt: skip
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else W&B, offline, waits 20 s to report it
        import wandb

        folder = Path(save_dir).absolute()
        swept = sweep_dir is not None and Path(sweep_dir).absolute() in folder.parents
        console = "off" if sys.stdout.isatty() else "auto"  # a progress bar would fill its log
        super().__init__(
            name=name or (f"{folder.parent.name}/{folder.name}" if swept else folder.name),
            save_dir=str(folder),
            id=id or _earlier_id(folder),
            project=project,
            entity=entity,
            group=group or (Path(sweep_dir).name if swept and sweep_dir else None),
            tags=list(tags or ()),
            settings=wandb.Settings(init_timeout=patience, silent=True, console=console),
        )
        del self._wandb_init["anonymous"]  # W&B warns that it has no effect
        self._without: str | None = "offline=true" if offline else _missing_key()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun when it is first asked for."""
        if self._experiment is None:
            self._begin()
        return self._experiment

    def finalize(self, status: str) -> None:
        """End the run, so that the next one of this process has its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))

    def _begin(self) -> None:
        from wandb.errors import Error

        try:
            run: Any = super().experiment if self._without is None else None
        except (Error, OSError, ValueError) as error:  # no answer, a key that is refused, or is none
            self._without = f"{type(error).__name__}: {error}".splitlines()[0]
        if self._without is not None:
            self._wandb_init["mode"] = "offline"
            run = super().experiment
        for name in _SCORES:
            run.define_metric(name, step_metric="trainer/global_step", summary="max,last")
        if run.settings.mode == "offline":
            why = f" ({self._without})" if self._without else ""
            folder = shlex.quote(str(Path(run.dir).parent))
            say("wandb", f"offline{why}, upload with: wandb sync {folder}")
        elif run.url:
            say("wandb", run.url)


def _earlier_id(folder: Path) -> str | None:
    folders = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    return folders[-1].name.rpartition("-")[2] if folders else None


def _missing_key() -> str | None:
    environ = os.environ
    goes_nowhere = environ.get("WANDB_MODE", "online") != "online"
    if goes_nowhere or environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    host = urlsplit(environ.get("WANDB_BASE_URL", _HOST)).netloc
    try:
        return None if netrc.netrc(environ.get("NETRC")).authenticators(host) else "no API key"
    except (OSError, netrc.NetrcParseError):
        return "no API key"
