"""Processes that train together: none waits for ever for one that is gone, stuck or has never come.

An exchange with a process that is gone fails at once where sockets connect the two, which is not so while
they still look for each other, nor always between GPUs; one that is stuck looks like one that computes. So
the first process and those that it started watch each other, and every exchange has a time limit.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from subprocess import Popen
from typing import NoReturn

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from wsss_afa.callbacks.faults import EXIT_INTERRUPTED, EXIT_STOPPED, RESUME_HINT

_MAIN = "WSSS_AFA_MAIN_PROCESS"  # its id, in the environment of those that it starts
_GRACE = 5.0  # seconds in which a process may end by itself when the first has gone


def guard(trainer: L.Trainer, patience: float) -> None:
    """Let a run end, with a line that says why, when one of its processes dies or does not answer.

    Another launcher, such as torchrun, watches the processes that it started; the limit holds there too.

    Args:
        trainer: Before it fits or validates.
        patience: Seconds that a process waits for the others to join, or to take part in an exchange.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy | FSDPStrategy):
        return
    strategy._timeout = timedelta(seconds=patience)  # the constructor's; strategy=auto offers no other way
    assert strategy.cluster_environment is not None
    main = int(os.environ.get(_MAIN, os.getpid()))
    if not strategy.cluster_environment.creates_processes_externally:
        os.environ[_MAIN] = str(os.getpid())
        if isinstance(strategy.launcher, _SubprocessScriptLauncher):
            _watch(_find_others, strategy.launcher)
    elif main != os.getpid():
        _watch(_outlive, trainer, main)


def _watch(what: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=what, args=arguments, daemon=True).start()


def _find_others(launcher: _SubprocessScriptLauncher) -> None:
    """Wait until the trainer has started the other processes, then for the end of each."""
    while not launcher.procs:
        time.sleep(0.1)
    for rank, process in enumerate(launcher.procs, 1):
        _watch(_end_with, rank, process, launcher.procs)


def _end_with(rank: int, process: Popen[bytes], others: list[Popen[bytes]]) -> None:
    code = process.wait()
    if code in (0, EXIT_STOPPED, EXIT_INTERRUPTED):
        process.returncode = 0  # or Lightning's observer would kill this process, which is about to end too
        return
    for other in others:
        other.kill()
    if code > 0:  # it has said why
        os._exit(code)
    _end(f"process {rank} was killed by {signal.Signals(-code).name}", 128 - code)


def _outlive(trainer: L.Trainer, main: int) -> None:
    """End when the first process has gone before the work was done."""
    while os.getppid() == main:
        time.sleep(1)
    time.sleep(_GRACE)
    if not trainer.state.stopped:
        _end("the first process is gone", 1)


def _end(what: str, code: int) -> NoReturn:
    print(f"error: {what}, so the others end too; {RESUME_HINT}", file=sys.stderr, flush=True)
    os._exit(code)  # the main thread may wait for what never comes
