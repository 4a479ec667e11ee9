"""Runs of a sweep that end early because those before them were better."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from quiet import QUIET
from small_run import SMALL_RUN
from wsss_afa import train
from wsss_afa.reports.log import read_log
from wsss_afa.reports.sweep import find_runs

pytest.importorskip("optuna", reason="needs the extra sweep: pip install -e '.[sweep]'")
pytestmark = QUIET

SMALL = [*SMALL_RUN, "trainer.max_steps=6", "trainer.val_check_interval=2"]
PRUNED = [
    "callbacks=pruning",
    "callbacks.pruning.pruner.n_startup_trials=1",
    "callbacks.pruning.pruner.n_warmup_steps=0",
]


def leave_scores(folder, scores):
    """Write the scores of an earlier run, by step counted from 1."""
    folder.mkdir()
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["step", "val/miou_seg"], *((step - 1, score) for step, score in scores.items())])


def steps_of(folder):
    return list(read_log(folder / "metrics.csv")["val/miou_seg"].index)


@pytest.mark.parametrize(
    ("earlier", "steps"),
    [
        ({2: 1.0, 4: 1.0, 6: 1.0}, [2]),  # nothing is as good
        ({2: 0.0, 4: 1.0, 6: 1.0}, [2, 4]),  # compared at the same step
        ({2: 0.0, 4: 0.0, 6: 0.0}, [2, 4, 6]),
        ({2: 1.0, 4: 1.0}, [2, 4, 6]),  # that run did not end, and counts for nothing
    ],
)
def test_a_run_ends_where_it_is_worse_than_the_run_beside_it(earlier, steps, run, tmp_path):
    leave_scores(tmp_path / "0", earlier)
    arguments = [*SMALL, *PRUNED, f"hydra.run.dir={tmp_path}/1"]
    code, text = run(train, *arguments)
    assert code == 0
    assert steps_of(tmp_path / "1") == steps
    pruned = len(steps) < 3
    assert ("pruned    at step" in text) == (tmp_path / "1" / "pruned").is_file() == pruned
    if pruned:
        problem = f"pruned at step {steps[-1]} of 6 by MedianPruner"
        assert [problem in line for line in find_runs([tmp_path / "1"]).missing] == [True]


def test_the_same_command_again_leaves_a_pruned_run_until_its_mark_is_deleted(run, tmp_path):
    leave_scores(tmp_path / "0", {2: 1.0, 4: 1.0, 6: 1.0})
    arguments = [*SMALL, *PRUNED, f"hydra.run.dir={tmp_path}/1"]
    run(train, *arguments)
    code, text = run(train, *arguments)
    assert code == 0
    assert "pruned    earlier" in text
    assert steps_of(tmp_path / "1") == [2]
    (tmp_path / "1" / "pruned").unlink()
    (tmp_path / "0" / "metrics.csv").unlink()
    assert run(train, *arguments)[0] == 0
    assert steps_of(tmp_path / "1") == [2, 4, 6]


@pytest.mark.slow
def test_a_search_gets_the_score_of_a_pruned_run(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs hydra-optuna-sweeper")
    command = [sys.executable, "-m", "wsss_afa.train", "-m", *SMALL, "+sweep=optuna", "hydra.sweep.dir=sweep"]
    command += ["hydra.sweeper.n_trials=1", "~callbacks.pruning.pruner"]
    command += ["+callbacks.pruning.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 1.0}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "sweep" / "0") == [2]
    result = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    scores = json.loads((tmp_path / "sweep" / "0" / "metrics.json").read_text())
    assert result.best_value == pytest.approx(scores["best"]["val/miou_seg"] / 100, abs=1e-5)
