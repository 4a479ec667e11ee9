"""Processes that train together: none waits for ever for one that is gone, stuck or has never come."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from subprocess import Popen
from threading import Thread
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script

from wsss_afa.callbacks.faults import EXIT_INTERRUPTED, EXIT_STOPPED, RESUME_HINT


def guard(trainer: L.Trainer, patience: float) -> None:
    """Let a run end, with a line that says why, when one of its processes dies or does not answer.

    Another launcher, such as torchrun, watches the processes that it started; the limit holds there too.

    Args:
        trainer: Before it fits or validates.
        patience: Seconds that a process waits for the others to join, or to take part in an exchange.
    """
    if isinstance(trainer.strategy, DDPStrategy | FSDPStrategy):
        # the constructor's argument, which strategy=auto does not hand on
        trainer.strategy._timeout = timedelta(seconds=patience)
        # Lightning's kills all without a word, and takes an orderly stop for a failure
        subprocess_script._launch_process_observer = _watch  # type: ignore[attr-defined]


def _watch(child_processes: list[Popen[Any]]) -> None:
    for rank, process in enumerate(child_processes, 1):
        Thread(target=_end_with, args=(rank, process, child_processes), daemon=True).start()


def _end_with(rank: int, process: Popen[Any], started: list[Popen[Any]]) -> None:
    """End this process and the others when one that it started has failed."""
    code = process.wait()
    if code in (0, EXIT_STOPPED, EXIT_INTERRUPTED):
        return
    for each in started:
        each.kill()
    if code < 0:  # else it has said why
        name = signal.Signals(-code).name
        what = f"error: process {rank} was killed by {name}, so the others end too"
        print(f"{what}; {RESUME_HINT}", file=sys.stderr)
    os._exit(code if code > 0 else 128 - code)  # the main thread may wait for what never comes
