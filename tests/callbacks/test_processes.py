"""Several processes: they learn what one would, and none outlives another for long."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import nn

from soak import _SERVER, SMALL, children, finish, launch
from two_processes import as_rank, free_port
from wsss_afa.callbacks import processes
from wsss_afa.callbacks.faults import explain
from wsss_afa.methods.base import Method

STEPS = 12
EQUAL = [
    "backbone.drop_path_rate=0.0",
    "method.phases.segmentation=4",
    "method.phases.propagation=8",
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=100",
    "trainer.limit_val_batches=0",
    "callbacks.best.monitor=val/map_cls",
]
"""Labels from step 4 on, propagated from step 8; each process would leave out other things at random."""


def set_up(rank, port, before):
    as_rank(rank, port)
    before()


def launch_two(folder, *overrides, before=print):
    port = free_port()
    return [
        launch(folder, *overrides, "trainer.devices=2", before=partial(set_up, rank, port, before))
        for rank in range(2)
    ]


def wait_for(found, seconds=300):
    start = time.monotonic()
    while not found():
        assert time.monotonic() - start < seconds
        time.sleep(0.1)


def log_of(folder):
    return (folder / "log").read_text()


# The same numbers


def never(module, mode=True):
    return nn.Module.train(module, False)


def steady(folder, also=print):
    """No statistics of a batch, no dropout; and a file of each process's losses."""
    nn.BatchNorm2d.train = nn.Dropout2d.train = never
    training_step = Method.training_step

    def written(self, batch, batch_idx):
        self.train()
        loss = training_step(self, batch, batch_idx)
        with (folder / f"losses_{os.environ.get('LOCAL_RANK', '0')}").open("a") as file:
            file.write(f"{loss.item():.9g}\n")
        return loss

    Method.training_step = written
    also()


def learnt(folder, *overrides, two=False, also=print):
    """Losses by micro-batch (n,) averaged over processes, and weights, of a run."""
    folder.mkdir()
    start = launch_two if two else lambda *args, before: [launch(*args, before=before)]
    for process in start(folder, *EQUAL, *overrides, before=partial(steady, folder, also)):
        assert finish(process) == 0, log_of(folder)[-2000:]
    files = sorted(folder.glob("losses_*"))
    assert len(files) == 1 + two
    values = torch.tensor([[float(line) for line in file.read_text().split()] for file in files])
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == int(overrides[0].split("=")[1]) if overrides else STEPS
    return values.mean(0), content["state_dict"]


def farthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    two = learnt(root / "two", two=True)
    return root, two


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_the_whole_batch(runs):
    """Through all three phases."""
    root, (two, weights) = runs
    one, same = learnt(root / "one")
    assert torch.allclose(two, one, atol=1e-5, rtol=0)
    assert farthest(weights, same) < 1e-5


@pytest.mark.slow
def test_with_counts_of_their_own_they_learn_what_one_does_in_two_parts(runs):
    """An accumulated part of a batch knows the pixels of no other."""
    root, (shared, others) = runs
    two, weights = learnt(root / "own", f"trainer.max_steps={STEPS}", "method.shared_counts=false", two=True)
    parts, same = learnt(root / "parts", f"trainer.max_steps={STEPS}", "trainer.accumulate_grad_batches=2")
    assert len(parts) == 2 * STEPS
    assert torch.allclose(two, parts.view(-1, 2).mean(1), atol=1e-5, rtol=0)
    assert farthest(weights, same) < 1e-5
    assert (two - shared).abs().max() > 1e-4
    assert farthest(weights, others) > 1e-4


def with_statistics():
    """Take back the first half of what `steady` does."""
    nn.BatchNorm2d.train = nn.Module.train


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="SyncBatchNorm takes two GPUs")
def test_shared_batch_statistics_on_gpus(tmp_path):
    """Two labelled steps, the second of which sees the statistics' gradient."""
    steps = ["trainer.max_steps=3", "method.phases.segmentation=1", "trainer.accelerator=gpu"]
    one, weights = learnt(tmp_path / "one", *steps, also=with_statistics)
    two, same = learnt(tmp_path / "two", *steps, two=True, also=with_statistics)
    assert torch.allclose(two, one, atol=1e-4, rtol=0)
    assert farthest(weights, same) < 1e-4


# The end of all


def stuck(rank, hook, step, act):
    """Let one process do something at a step."""
    method = getattr(Method, hook)

    def wrapped(self, *args):
        if self.global_step == step and os.environ["LOCAL_RANK"] == str(rank):
            act()
        return method(self, *args)

    setattr(Method, hook, wrapped)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


LOST = (
    r"error: another process is gone, stuck or slower than patience allows \(.+\): .* goes on from its newest"
)


@pytest.mark.slow
def test_a_process_that_is_killed_is_missed_at_once(tmp_path):
    first, second = launch_two(tmp_path, before=partial(stuck, 0, "training_step", 3, die))
    first.join(60)
    killed, start = first.exitcode, time.monotonic()
    assert (killed, finish(second)) == (-signal.SIGKILL, 1)
    assert time.monotonic() - start < 15
    assert re.search(LOST, log_of(tmp_path))
    assert "Traceback" not in log_of(tmp_path)


@pytest.mark.slow
def test_a_process_that_is_stuck_is_not_waited_for_for_ever(tmp_path):
    trap = partial(stuck, 1, "training_step", 3, partial(time.sleep, 600))
    first, second = launch_two(tmp_path, "patience=8", before=trap)
    assert finish(first) == 1
    second.kill()
    assert re.search(LOST, log_of(tmp_path))


@pytest.mark.slow
def test_a_process_that_never_comes_is_not_waited_for_for_ever(tmp_path):
    trap = partial(as_rank, 0, free_port())
    assert finish(launch(tmp_path, "trainer.devices=2", "patience=3", before=trap)) == 1
    assert re.search(LOST, log_of(tmp_path))


def main_process(folder, act):
    """A first process that waits for ever while one that it started does something."""
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), 2)
    trainer = L.Trainer(strategy="ddp", devices=2, accelerator="cpu", logger=False, enable_progress_bar=False)
    processes.guard(trainer, 5)
    subprocess_script._launch_process_observer([subprocess.Popen([sys.executable, "-c", act])])
    time.sleep(600)


@pytest.mark.parametrize(
    ("act", "code", "line"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            137,
            "error: process 1 was killed by SIGKILL, so the others end",
        ),
        ("import sys; sys.exit('error: no such image')", 1, "error: no such image"),
    ],
)
def test_the_first_process_ends_with_one_that_it_started(act, code, line, tmp_path):
    process = _SERVER.Process(target=main_process, args=(tmp_path, act))
    process.start()
    process.join(30)
    assert process.exitcode == code
    errors = [each for each in log_of(tmp_path).splitlines() if each.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(line)


def test_what_counts_as_lost():
    for words in (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error: Connection reset by peer",
        "NCCL communicator was aborted on rank 1.",
    ):
        assert "another process is gone" in explain(RuntimeError(words), 8, 512, 1, 4)
    assert "another process is gone" in explain(dist.DistStoreError("Timed out after 601 s"), 8, 512, 1, 4)
    assert explain(RuntimeError("shapes cannot be multiplied"), 8, 512, 1, 4) is None


ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_trainers_own_processes_end_together(tmp_path):
    """The program as users start it, one of its two processes killed while both train."""
    settings = ["trainer.devices=2", "trainer.max_steps=100000", "trainer.val_check_interval=100000"]
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "wsss_afa.train", *SMALL, *settings, f"hydra.run.dir={tmp_path}"]
        first = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=ALONE)
    try:
        wait_for(lambda: list(tmp_path.glob("checkpoints/step_*.ckpt")))
        start = time.monotonic()
        for child in children(first.pid):
            os.kill(child, signal.SIGKILL)
        assert first.wait(20) in (1, 137)
        assert time.monotonic() - start < 10
    finally:  # a test that fails leaves no training behind
        for pid in (*children(first.pid), first.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert re.search(f"process 1 was killed by SIGKILL|{LOST}", log_of(tmp_path))
    assert "Traceback" not in log_of(tmp_path)


def as_node(rank, port):
    """What torchrun tells the only process of a node of two."""
    os.environ |= {"RANK": str(rank), "GROUP_RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}


@pytest.mark.slow
def test_two_nodes_train(tmp_path):
    """Two launchers that meet at an address, a process each: one run, in one folder."""
    port, settings = free_port(), ["trainer.num_nodes=2", "trainer.max_steps=6"]
    nodes = [launch(tmp_path, *settings, before=partial(as_node, rank, port)) for rank in range(2)]
    assert [finish(node) for node in nodes] == [0, 0], log_of(tmp_path)[-2000:]
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert '"processes": 2' in (tmp_path / "run.json").read_text()
