"""A run's folder is one process's: whoever comes second is told who is there, before anything is written.

The lock is the system's own and ends with its process, however that ends. It is not handed on to loader
processes, and processes that train together leave it to the first of them.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

LOCK = ".lock"
"""Name of the file in a run's folder that is locked; it stays, and says who had it last."""
_TAKEN = (errno.EACCES, errno.EAGAIN)
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
_held: dict[tuple[int, Path], TextIOWrapper] = {}  # by process: a fork holds nothing


class OneRun(Callback):  # type: ignore[misc]  # Hydra has no types
    """Locks the folder of a run, or of a sweep and of each run in it, before Hydra writes into it.

    Hydra turns an exception here into a warning, so a folder that cannot be had ends the program by itself.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Before a single run."""
        hold(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Before a sweep."""
        hold(Path(config.hydra.sweep.dir))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Before each run of a sweep, on whatever machine."""
        hold(Path(OmegaConf.select(config, "hydra.runtime.output_dir")))


def hold(folder: Path, lock: Path | None = None, setting: str = "hydra.run.dir") -> None:
    """Make the folder this process's until it ends, or until `release`; it may hold it already.

    Args:
        folder: What this process wants for itself.
        lock: The file that is locked, `LOCK` in the folder unless given; its folder is made if there is none.
        setting: Names the folder on the command line; errors say it.

    Raises:
        SystemExit: another process has it, or it cannot be written.
    """
    path = (lock or folder / LOCK).absolute()
    if (os.getpid(), path) in _held or any(os.environ.get(name, "0") != "0" for name in _RANKS):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        sys.exit(f"error: {setting} cannot be written ({error}): choose another folder")
    if not _lock(file):
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        sys.exit(f"error: {folder} is in use by {owner}: wait until it has ended, or give another {setting}")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _held[os.getpid(), path] = file  # closed, it would be free


def release() -> None:
    """Give all folders back; the files stay, since another process may wait with one of them open."""
    for owner in [owner for owner in _held if owner[0] == os.getpid()]:
        _held.pop(owner).close()


def _lock(file: TextIOWrapper) -> bool:
    """Whether the file is this process's now, or the system has no locks for it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
