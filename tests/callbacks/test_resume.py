"""A run that is killed anywhere and started again ends with the unbroken run's every bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from soak import finish, identical, killed, launch, outcome
from wsss_afa.callbacks.reproducibility import StepSeeds
from wsss_afa.methods.base import Method


def kill_in(hook: str, step: int) -> None:
    """Make a method of the module, called at a step, the last thing that the process does."""
    method = getattr(Method, hook)

    def fatal(self, *args):
        if self.global_step == step and not self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args)

    setattr(Method, hook, fatal)


def resumed(folder, overrides, *traps):
    """Outcome of a run that fell into each trap and was started again."""
    for trap in traps:
        assert finish(launch(folder, *overrides, before=trap)) == -signal.SIGKILL
    assert finish(launch(folder, *overrides)) == 0, (folder / "log").read_text()[-2000:]
    return outcome(folder)


def unbroken(folder, overrides=()):
    assert finish(launch(folder, *overrides)) == 0, (folder / "log").read_text()[-2000:]
    return outcome(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return unbroken(tmp_path_factory.mktemp("whole"))


PLACES = {
    "before the first checkpoint": [partial(kill_in, "training_step", 2)],
    "in a validation": [partial(kill_in, "validation_step", 6)],
    "in the last validation": [partial(kill_in, "validation_step", 16)],
    # in each phase, right before and right after a validation
    "again and again": [partial(kill_in, "training_step", step) for step in (4, 4, 5, 10, 12, 14)],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_anywhere_ends_as_the_unbroken_one(place, whole, tmp_path):
    assert identical(resumed(tmp_path, [], *PLACES[place]), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.num_workers=2", "method.weights.reg=0.01", "deterministic=true"],
        ["method.labels=cam", "data.balanced=true"],
        ["data.batch_size=8", "trainer.accumulate_grad_batches=2", "trainer.limit_val_batches=0"],
    ],
    ids=" ".join,
)
def test_whatever_the_settings(overrides, tmp_path):
    trap = partial(kill_in, "training_step", 13)
    if "trainer.limit_val_batches=0" in overrides:
        (tmp_path / "whole").mkdir()
        (tmp_path / "broken").mkdir()
        for folder in ("whole", "broken"):
            (tmp_path / folder / "metrics.json").write_text("none is written")
    assert identical(resumed(tmp_path / "broken", overrides, trap), unbroken(tmp_path / "whole", overrides))


@pytest.mark.slow
def test_dropout_without_a_seed_for_each_step_would_differ(tmp_path):
    """What the tests above compare is sensitive to a single draw."""
    trap = partial(kill_in, "training_step", 9)
    differing = resumed(tmp_path / "broken", ["~callbacks.seeds"], trap)
    steady = unbroken(tmp_path / "whole", ["~callbacks.seeds"])
    assert not identical(differing["state_dict"], steady["state_dict"])


@pytest.mark.slow
def test_loader_processes_change_nothing(whole, tmp_path):
    assert identical(unbroken(tmp_path, ["data.num_workers=1"]), whole)


def test_the_last_checkpoint_is_of_the_last_step_and_not_of_the_best(tmp_path):
    last = unbroken(tmp_path, ["callbacks.best.mode=min"])  # scores rise
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] < last["global_step"] == 16


def test_a_finished_run_is_made_longer(tmp_path):
    """It ends with a validation of the interval, and its last batch is no more the last of all."""
    for steps in (6, 8):
        content = unbroken(tmp_path, [f"trainer.max_steps={steps}"])
    assert content["global_step"] == 8


def test_random_kills(tmp_path):
    assert killed(rounds=1, steps=16, seed=1, root=tmp_path)


def test_what_a_step_draws_depends_on_seed_batch_and_process_alone():
    draws = {}
    for rank, batch in [(0, 3), (0, 4), (1, 3), (0, 3)]:
        StepSeeds(seed=5).on_train_batch_start(SimpleNamespace(global_rank=rank), None, None, batch)
        draws.setdefault((rank, batch), []).append(torch.rand(4).tolist())
    assert draws[0, 3][0] == draws[0, 3][1]
    assert len({str(values[0]) for values in draws.values()}) == 3
