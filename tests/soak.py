"""Break a training run at random, for as long as you like, and see whether it ends as the unbroken one does.

    python tests/soak.py minutes=40          # a fault every half minute: signals, dead loaders, full disk, …
    python tests/soak.py kills=20            # rounds of kill -9 at random moments, nothing else

Every line of the table is one piece of a run, from its start to its fault. The exit code is 1 if a run did
not end with the weights, the optimiser and the numbers of the unbroken run, bit for bit.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

import torch

from wsss_afa import train

SMALL = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.val_images=3",
    "data.batch_size=4",
    "method.decoder_dim=16",
    "backbone.drop_path_rate=0.1",
    "method.phases.segmentation=5",
    "method.phases.propagation=11",
    "trainer.max_steps=16",
    "trainer.val_check_interval=6",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures.num_images=0",
    "callbacks.steps.every_n_steps=4",
    "data.train_images=40",
]
"""A run of a second that goes through all three phases: labels from step 5 on, propagated from step 11."""


_SERVER = multiprocessing.get_context("forkserver")  # imports once, and forks before torch has any threads
_SERVER.set_forkserver_preload(["wsss_afa.programs.train"])


def launch(folder: Path, *overrides: str, before: Callable[[], object] = print) -> ForkServerProcess:
    """Start training in a process of its own.

    Args:
        folder: The run's; what is printed goes to ``log`` in it.
        overrides: Settings beside `SMALL`.
        before: Called first in that process, to lay a trap; a function that can be pickled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = _SERVER.Process(target=_train, args=(folder, overrides, before))
    process.start()
    return process


def _train(folder: Path, overrides: Sequence[str], before: Callable[[], object]) -> NoReturn:
    code: object = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        torch.set_num_threads(1)
        multiprocessing.set_start_method("fork", force=True)  # for loaders, as in a program of its own
        sys.argv = ["train", *SMALL, f"hydra.run.dir={folder}", *overrides]
        before()
        train.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        print("" if isinstance(code, int) else code, flush=True)
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def finish(process: ForkServerProcess) -> int:
    """Let a process end; its exit code, or minus the signal that killed it."""
    if process.pid is None:
        process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for paths in it and what clocks and memory say."""
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [
            {name: value for name, value in row.items() if not name.startswith("speed/")}
            for row in csv.DictReader(file)
        ]
    files = {"metrics.csv": rows, "metrics.json": (folder / "metrics.json").read_text()}
    return {name: content[name] for name in kept} | files


def identical(a: Any, b: Any) -> bool:
    """Whether nested containers hold the same bits."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


def step_of(folder: Path) -> int:
    """Step of the newest checkpoint that can be read."""
    steps = [-1]
    for path in folder.glob("checkpoints/*.ckpt"):
        try:
            steps.append(torch.load(path, weights_only=True, mmap=True)["global_step"])
        except Exception:  # noqa: S112  # a damaged one, on purpose
            continue
    return max(steps)


def children(pid: int) -> list[int]:
    """Processes that a process started: its loaders."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def damage(folder: Path, rng: random.Random) -> None:
    """Alter one byte of the newest checkpoint, or cut it short."""
    newest = max(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return
    content = bytearray(newest.read_bytes())
    place = rng.randrange(len(content) // 4, len(content) // 2)
    if rng.random() < 0.5:
        content[place] ^= 0xFF
    newest.write_bytes(content if content[place:] and rng.random() < 0.5 else content[:place])


def strike(fault: str, pid: int, folder: Path, rng: random.Random) -> None:
    """Do one thing to a running process."""
    if fault == "disk full":
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        time.sleep(5)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    elif fault == "dead loader":
        for child in children(pid)[:1]:
            os.kill(child, signal.SIGKILL)
    elif fault == "damaged file":
        os.kill(pid, signal.SIGKILL)
        damage(folder, rng)
    else:
        os.kill(pid, getattr(signal, fault))


FAULTS = ["SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT", "dead loader", "damaged file", "disk full"]


def usage(pid: int) -> tuple[float, int]:
    """Memory in MiB and open files of a process and its loaders."""
    memory, files = 0.0, 0
    for process in (pid, *children(pid)):
        try:
            resident = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            memory += resident * resource.getpagesize() / 2**20
            files += len(os.listdir(f"/proc/{process}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return memory, files


def watch(process: ForkServerProcess, seconds: float | None) -> tuple[int | None, float, int]:
    """Let a process run; its exit code if it ends by itself, the most memory and open files seen."""
    end, memory, files = time.monotonic() + (seconds or 1e9), 0.0, 0
    while process.exitcode is None and time.monotonic() < end:
        now = usage(process.pid)
        memory, files = max(memory, now[0]), max(files, now[1])
        process.join(min(0.25, max(0.0, end - time.monotonic())))
    return process.exitcode, memory, files


def broken_run(
    folder: Path, overrides: list[str], pauses: Iterator[float], faults: list[str], rng: random.Random
) -> int:
    """Start, strike after each pause, start again until the run is done; how often it was struck."""
    code, struck = None, 0
    while code != 0:
        begin, first = time.monotonic(), step_of(folder)
        process, fault = launch(folder, *overrides), "-"
        code, memory, files = watch(process, next(pauses, None))
        if code is None:
            fault, struck = rng.choice(faults), struck + 1
            strike(fault, process.pid, folder, rng)
            if fault == "disk full" and watch(process, 5)[0] is None:  # with room again it went on
                os.kill(process.pid, signal.SIGTERM)
            code = finish(process)
        spent, last = time.monotonic() - begin, step_of(folder)
        line = f"{folder.name:8} {spent:6.1f} s  {first:6} {last:6}  {fault:12} {code:4}"
        print(f"{line} {memory:7.0f} MiB {files:5} files", flush=True)
    return struck


def killed(rounds: int, steps: int, seed: int, root: Path) -> bool:
    """Rounds of up to three kill -9; whether all ended as the unbroken run did."""
    rng, overrides, agreed = random.Random(seed), [f"trainer.max_steps={steps}"], []  # noqa: S311
    finish(_SERVER.Process(target=print))  # imports are not timed
    begin = time.monotonic()
    assert finish(launch(root / "whole", *overrides)) == 0, (root / "whole" / "log").read_text()[-2000:]
    length = time.monotonic() - begin
    while len(agreed) < rounds:
        pauses = iter([rng.uniform(0, length) for _ in range(3)])
        folder = root / f"kill{len(agreed)}"
        if broken_run(folder, overrides, pauses, ["SIGKILL"], rng):
            agreed.append(_report(root / "whole", folder))
        shutil.rmtree(folder)
    print(f"{sum(agreed)} of {rounds} bit-identical")
    return all(agreed)


def soaked(minutes: float, steps: int, every: float, seed: int, root: Path) -> bool:
    """Runs with all kinds of faults until the time is over; whether each ended as an unbroken one did."""
    rng, end, agreed = random.Random(seed), time.monotonic() + 60 * minutes, []  # noqa: S311
    common = ["data.num_workers=1", "callbacks.steps.every_n_steps=20", "trainer.val_check_interval=50"]
    while time.monotonic() < end:
        overrides = [*common, f"trainer.max_steps={steps}", f"seed={len(agreed)}"]
        whole, broken = root / f"whole{len(agreed)}", root / f"soak{len(agreed)}"
        pauses = (rng.uniform(0.5, 1.5) * every for _ in itertools.count())
        broken_run(broken, overrides, pauses, FAULTS, rng)
        assert finish(launch(whole, *overrides)) == 0, (whole / "log").read_text()[-2000:]
        agreed.append(_report(whole, broken))
    print(f"{sum(agreed)} of {len(agreed)} bit-identical")
    return all(agreed)


def _report(whole: Path, broken: Path) -> bool:
    agree = identical(outcome(whole), outcome(broken))
    print(f"{broken.name:8} {'bit-identical' if agree else 'DIFFERS'}", flush=True)
    return agree


def main() -> None:
    """Read ``name=number`` arguments and go."""
    given = {"minutes": 3.0, "kills": 0.0, "steps": 0.0, "every": 30.0, "seed": 0.0}
    given |= {name: float(value) for name, value in (word.split("=") for word in sys.argv[1:])}
    kills, steps, seed = int(given["kills"]), int(given["steps"]), int(given["seed"])
    print("run          time    from     to  fault        code      memory     handles")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if kills:
            right = killed(kills, steps or 30, seed, root)
        else:
            right = soaked(given["minutes"], steps or 1000, given["every"], seed, root)
    sys.exit(not right)


if __name__ == "__main__":
    main()
