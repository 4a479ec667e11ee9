"""A program as two processes of one run, forked from a server that has imported it already."""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from soak import _SERVER


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def as_rank(rank: int, port: int) -> None:
    """Set what a launcher tells a process of two."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_as_two(program: ModuleType, folder: Path, *words: str) -> str:
    """Run a program as two processes to its end; return what they print.

    Args:
        program: module with a ``main``.
        folder: where the output goes, to ``log``.
        words: of the command line, beside ``trainer.devices=2``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, command = free_port(), (*words, "trainer.devices=2")
    both = [
        _SERVER.Process(target=_run, args=(rank, port, program.__name__, command, folder)) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    output = (folder / "log").read_text()
    assert [process.exitcode for process in both] == [0, 0], output[-2000:]
    return output


def _run(rank: int, port: int, name: str, command: tuple[str, ...], folder: Path) -> None:
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    as_rank(rank, port)
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = [name, *command]
    import_module(name).main()
