"""Signals, numbers that are none, full disks, dead helpers: what a run does about them."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from soak import children, finish, identical, launch, outcome
from wsss_afa.callbacks import checkpoints as checkpointing
from wsss_afa.callbacks.faults import FiniteLoss, explain, tolerate
from wsss_afa.callbacks.trainer import fit
from wsss_afa.errors import UserError
from wsss_afa.methods.afa.method import AFA
from wsss_afa.methods.base import Method


def at(hook, step, act):
    """Make a method of the module do something first, once, at a step."""
    method, done = getattr(Method, hook), []

    def with_act(self, *args):
        if self.global_step == step and not done:
            done.append(act(self))
        return method(self, *args)

    setattr(Method, hook, with_act)


def signal_all(number, module):
    """What a terminal or a scheduler does: every process of the run gets the signal."""
    for child in children(os.getpid()):
        os.kill(child, number)
    os.kill(os.getpid(), number)


def log_of(folder):
    return (folder / "log").read_text()


def lines(folder, start):
    return [line for line in log_of(folder).splitlines() if line.startswith(start)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert finish(launch(folder)) == 0, log_of(folder)[-2000:]
    return outcome(folder)


STOPS = [
    ("SIGTERM", 75, "training_step", 6, ["data.num_workers=1"]),
    ("SIGUSR1", 75, "validation_step", 12, []),
    ("SIGINT", 130, "training_step", 15, []),
]


@pytest.mark.parametrize(("name", "code", "hook", "step", "overrides"), STOPS)
def test_a_signal_stops_between_steps_and_nothing_is_lost(name, code, hook, step, overrides, whole, tmp_path):
    trap = partial(at, hook, step, partial(signal_all, signal.Signals[name]))
    assert finish(launch(tmp_path, *overrides, before=trap)) == code, log_of(tmp_path)[-2000:]
    stopped = step if hook == "validation_step" else step + 1
    assert lines(tmp_path, "stopped") == [
        f"stopped   at step {stopped} of 16 by {name}: the same command with hydra.run.dir={tmp_path} goes on"
    ]
    assert "Traceback" not in log_of(tmp_path)
    assert finish(launch(tmp_path, *overrides)) == 0
    repeated = 1 if hook == "validation_step" or stopped in (6, 12, 16) else 0
    assert lines(tmp_path, "resuming")[0].startswith(f"resuming  from step {stopped - repeated}:")
    assert identical(outcome(tmp_path), whole)


def pretend_slurm(folder):
    """A job of one task, and a scontrol that writes down how it was called."""
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {folder}/called\n')
    (folder / "scontrol").chmod(0o755)
    os.environ |= {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    os.environ |= {"SLURM_NODEID": "0", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost"}
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def slurm_and(folder, number):
    pretend_slurm(folder)
    at("training_step", 3, partial(signal_all, number))


@pytest.mark.parametrize("name", ["SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_slurm_requeues_on_the_signal_that_asks_for_it(name, tmp_path):
    trap = partial(slurm_and, tmp_path, signal.Signals[name])
    assert finish(launch(tmp_path, before=trap)) == 75, log_of(tmp_path)[-2000:]
    assert (tmp_path / "checkpoints" / "step_000004.ckpt").is_file()
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    if name == "SIGUSR1":
        assert (tmp_path / "called").read_text() == "requeue 4711\n"
    else:
        assert not (tmp_path / "called").exists()


def poison(steps):
    """A segmentation loss of NaN in some steps."""
    losses = AFA.losses

    def poisoned(self, batch, step):
        terms = losses(self, batch, step)
        return terms | {"seg": terms["seg"] * float("nan")} if step in steps else terms

    AFA.losses = poisoned


def test_a_loss_of_nan_stops_with_its_name_and_what_made_it(tmp_path):
    assert finish(launch(tmp_path, before=partial(poison, [7]))) == 1
    (line,) = lines(tmp_path, "error:")
    assert re.search(r"step 7: loss_seg=nan; .*nonfinite_step_000007_process_0\.pt.*skip_nan_steps=10", line)
    assert "Traceback" not in log_of(tmp_path)
    kept = torch.load(tmp_path / "nonfinite_step_000007_process_0.pt", weights_only=True)
    assert kept["what"] == "loss_seg=nan"
    assert kept["batch"]["image"].shape == (4, 3, 32, 32)
    assert all(value.isfinite().all() for value in kept["state"].values())


@pytest.mark.slow
def test_steps_of_nan_are_left_out_as_often_as_allowed(tmp_path):
    overrides = ["callbacks.finite.skip_nan_steps=2"]
    assert finish(launch(tmp_path / "two", *overrides, before=partial(poison, [7, 9]))) == 0
    assert "step 9 left out (2 of 2): loss_seg=nan" in log_of(tmp_path / "two")
    assert all(value.isfinite().all() for value in outcome(tmp_path / "two")["state_dict"].values())
    # a resumed run has used up what it had used up
    stop = partial(at, "training_step", 8, partial(signal_all, signal.SIGKILL))
    assert finish(launch(tmp_path / "three", *overrides, before=partial(both, poison, [5, 7], stop))) == -9
    assert finish(launch(tmp_path / "three", *overrides, before=partial(poison, [5, 7, 9]))) == 1
    assert "step 9: loss_seg=nan" in lines(tmp_path / "three", "error:")[0]


def both(first, argument, second):
    first(argument)
    second()


def fake_trainer(**changes):
    plain = {
        "world_size": 1,
        "strategy": SimpleNamespace(reduce_boolean_decision=lambda asked, all: asked),
        "global_step": 3,
        "global_rank": 0,
        "callback_metrics": {},
        "precision_plugin": SimpleNamespace(scaler=None),
    }
    return SimpleNamespace(**plain | changes)


def gradients_of(value):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net(torch.ones(1, 2)).sum().backward()
    net[1].weight.grad.fill_(value)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_no_weight(value, tmp_path):
    net, optimizer = gradients_of(value)
    before = [p.detach().clone() for p in net.parameters()]
    guard = FiniteLoss(str(tmp_path), skip_nan_steps=1)
    with pytest.warns(UserWarning, match=r"step 3 left out \(1 of 1\): gradient of 1\.weight is not finite"):
        guard.on_before_optimizer_step(fake_trainer(), net, optimizer)
    optimizer.step()
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))
    net, optimizer = gradients_of(value)
    with pytest.raises(UserError, match=r"gradient of 1\.weight"):
        guard.on_before_optimizer_step(fake_trainer(), net, optimizer)


def test_a_loss_scaler_sees_to_its_overflows_itself(tmp_path):
    net, optimizer = gradients_of(float("inf"))
    trainer = fake_trainer(precision_plugin=SimpleNamespace(scaler=object()))
    FiniteLoss(str(tmp_path)).on_before_optimizer_step(trainer, net, optimizer)
    assert net[1].weight.grad is not None


def test_finite_steps_pass(tmp_path):
    net, optimizer = gradients_of(1.0)
    guard = FiniteLoss(str(tmp_path))
    guard.on_before_backward(fake_trainer(), net, torch.tensor(1.5))
    guard.on_before_optimizer_step(fake_trainer(), net, optimizer)
    assert net[1].weight.grad is not None
    assert not list(tmp_path.iterdir())


def test_one_bad_process_stops_all(tmp_path):
    net, optimizer = gradients_of(1.0)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda asked, all: True)
    with pytest.raises(UserError, match="a loss in another process"):
        FiniteLoss(str(tmp_path)).on_before_optimizer_step(
            fake_trainer(world_size=2, strategy=strategy), net, optimizer
        )


def test_poisoned_batch_statistics_are_not_skipped_over(tmp_path):
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    net(torch.full((3, 2), float("nan"))).sum().backward()
    with pytest.raises(UserError, match=r"0\.running_mean is not finite either"):
        FiniteLoss(str(tmp_path), skip_nan_steps=5).on_before_optimizer_step(
            fake_trainer(), net, torch.optim.AdamW(net.parameters())
        )


def full_disk(names):
    """No room for the checkpoints that have one of these in their names."""
    write = checkpointing.write_whole

    def refuse(path, content, check=None):
        if any(name in path.name for name in names):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content, check)

    checkpointing.write_whole = refuse


def jump():
    """A clock that goes back a day in every step."""
    now, calls = time.time, []
    time.time = lambda: now() - 86400 * len(calls)
    at("training_step", 3, lambda module: calls.append(1))
    at("training_step", 9, lambda module: calls.append(1))


def test_training_outlives_a_full_disk_and_a_clock_that_jumps_back(whole, tmp_path):
    trap = partial(both, full_disk, ["step_000004", "step_000005", "step_000011"], jump)
    assert finish(launch(tmp_path, before=trap)) == 0, log_of(tmp_path)[-2000:]
    assert "step_000011.ckpt: not written, training goes on without it (No space left" in log_of(tmp_path)
    assert identical(outcome(tmp_path), whole)


def test_a_folder_called_like_a_step_hides_no_missing_file():
    failed = {"runs/step_1/checkpoints/best.ckpt", "runs/step_1/checkpoints/step_000004.ckpt"}
    trainer = SimpleNamespace(
        fit=lambda *_, **__: None, strategy=SimpleNamespace(checkpoint_io=SimpleNamespace(failed=failed))
    )
    with pytest.raises(UserError, match=r"best\.ckpt is missing or of an earlier step: make room"):
        fit(trainer, None, None, None)


@pytest.mark.slow
def test_a_best_score_without_its_file_is_not_believed(tmp_path):
    assert finish(launch(tmp_path, before=partial(full_disk, ["best"]))) == 1
    (line,) = lines(tmp_path, "error:")
    assert re.search(r"best\.ckpt is missing or of an earlier step: make room", line)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = [value for key, value in last["callbacks"].items() if key.startswith("BestAndLast")]
    assert state["best_model_score"] is None
    assert state["best_k_models"] == {}


def kill_a_loader(module):
    os.kill(children(os.getpid())[0], signal.SIGKILL)


def test_a_dead_loader_is_explained(whole, tmp_path):
    trap = partial(at, "training_step", 5, kill_a_loader)
    assert finish(launch(tmp_path, "data.num_workers=1", before=trap)) == 1
    (line,) = lines(tmp_path, "error:")
    assert re.search(r"DataLoader worker .*fewer than data\.num_workers=1.*goes on", line)


def wrapped(cause):
    """As where the signal of a dead helper arrives inside a ``try`` of somebody else's."""
    error = TypeError("unsupported callable")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("…"),
            r"data\.batch_size=8 in 1 parts and data\.crop_size=512: try backbone\.activation_checkpointing="
            r"true .*bf16-mixed .*accumulate_grad_batches=2 .*crop_size=384 ",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk is full .*goes on"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), r"num_workers=6"),
        (wrapped(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")), r"num_workers=6"),
        (RuntimeError("Caught ValueError in DataLoader worker process 0."), None),
        (RuntimeError("shapes do not fit"), None),
        (
            RuntimeError("Application timeout caused pair closure"),
            r"another process is gone, stuck or slower",
        ),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
            r"another process is gone",
        ),
        (
            MisconfigurationException("No `such` thing.\n See there."),
            r"^trainer: No `such` thing\. See there\.$",
        ),
        (ValueError("ours"), None),
        (OSError(errno.ENOENT, "No such file"), None),
    ],
)
def test_what_is_explained_and_what_is_a_bug(error, words):
    line = explain(error, batch_size=8, crop_size=512, accumulation=1, workers=6)
    assert (line is None) if words is None else re.search(words, line)
    assert line is None or "\n" not in line


class Unreachable(CSVLogger):
    """Its server is gone."""

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no route to host")

    def save(self):
        raise ConnectionError("no route to host")


class Unborn(CSVLogger):
    """Its server never answered."""

    @property
    def experiment(self):
        raise ConnectionError("no API key")


def test_a_failing_logger_warns_once(tmp_path):
    (logger,) = tolerate([Unreachable(tmp_path)])
    with pytest.warns(UserWarning, match=r"Unreachable\.log_metrics fails, training goes on"):
        logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)  # a second warning would be an error here


def test_a_logger_that_cannot_begin_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("wsss_afa.callbacks.faults.CSVLogger", Unreachable)
    with pytest.warns(UserWarning, match=r"Unborn cannot start, training goes on without it: no API key"):
        assert tolerate([Unborn(tmp_path)]) == []


def no_server():
    CSVLogger.log_metrics = Unreachable.log_metrics


@pytest.mark.slow
def test_training_outlives_its_logger(whole, tmp_path):
    assert finish(launch(tmp_path, before=no_server)) == 0
    assert log_of(tmp_path).count("MetricsFile.log_metrics fails") == 1
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert identical(content["state_dict"], whole["state_dict"])


@pytest.mark.slow
def test_the_record_tells_seeds_versions_and_starts(tmp_path):
    trap = partial(at, "training_step", 9, partial(signal_all, signal.SIGKILL))
    assert finish(launch(tmp_path, "deterministic=true", before=trap)) == -9
    assert finish(launch(tmp_path, "deterministic=true")) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["started_at_step"] == [0, 8]
    assert record["deterministic"] is True
    assert record["seeds"] == {"seed": 0, "data.seed": 0, "data.scene_seed": 0}
    assert record["versions"]["torch"] == torch.__version__
