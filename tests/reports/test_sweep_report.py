"""Sweeps that compose to what they say, and a report that counts every run or names it."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import re
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy.stats import ttest_rel

from quiet import QUIET
from small_run import SMALL_RUN
from wsss_afa import evaluate, sweep_report, train
from wsss_afa.files import CONFIG_DIR
from wsss_afa.programs.sweep_report import FILE
from wsss_afa.reports.sweep import find_runs
from wsss_afa.reports.table import make_rows, paired_difference, tabulate, write_markdown

SMALL = [
    *SMALL_RUN,
    "data.train_images=40",
    "trainer.max_steps=3",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
]
GRIDS = {
    "table1": 6,
    "table2": 4,
    "table3": 5,
    "figure4": 24,
    "scales": 4,
    "thresholds": 9,
    "radius": 4,
    "ablation": 25,
    "affinity_head": 20,
}

pytestmark = QUIET


def compose(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return hydra.compose("train", list(overrides), return_hydra_config=True)


def leave_run(folder, *overrides, step=None, **scores):
    """Write what a training run of these overrides leaves."""
    config = compose(*overrides)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(
        OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]), folder / ".hydra/config.yaml"
    )
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra/overrides.yaml")
    record = {"step": config.trainer.max_steps if step is None else step}
    record |= {"val/miou_seg": scores["seg"], "val/map_cls": 90.0, "iou": {}}
    best = record | {"val/miou_seg": scores["seg"] + 1}
    text = {"protocol": "plain", "split": "val", "best": best, "last": record}
    (folder / "metrics.json").write_text(json.dumps(text))


def announce(folder, *overrides):
    """Write what Hydra writes at the beginning of a sweep."""
    folder.mkdir(exist_ok=True)
    config = {"task": "train", "hydra": compose().hydra}
    config["hydra"].overrides.task = list(overrides)
    OmegaConf.save(OmegaConf.create(config), folder / "multirun.yaml")


def jobs_of(sweep, tmp_path):
    """All jobs of a sweep's file, by the report's own reading of it."""
    overrides = ["+experiment=synthetic", f"+sweep={sweep}"]
    hydra_config = compose(*overrides).hydra
    hydra_config.overrides.task = overrides
    OmegaConf.save(OmegaConf.create({"task": "train", "hydra": hydra_config}), tmp_path / "multirun.yaml")
    return find_runs([tmp_path]).missing


def test_differences_are_paired_over_common_seeds():
    """Of the same numbers scipy's paired t-test has mean / standard error."""
    rng = np.random.default_rng(0)
    values, first = rng.normal(60, 3, (2, 5))
    difference = paired_difference(pd.Series([*values, 0.0]), pd.Series([*first, np.nan, 1000.0]))
    assert difference.seeds == [0, 1, 2, 3, 4]
    expected = ttest_rel(values, first)
    assert difference.mean / difference.error == pytest.approx(expected.statistic, rel=1e-9)
    assert difference.p == pytest.approx(expected.pvalue, rel=1e-9)


def test_the_table_counts_seeds_and_names_what_is_missing(run, tmp_path):
    rows = ["method.labels=cam", "method.labels=par"]
    announce(tmp_path, "+experiment=synthetic", "method.labels=cam,par", "seed=0,1,2")
    scores = {(0, 0): 40.0, (0, 1): 50.0, (0, 2): 42.0, (1, 0): 45.0, (1, 1): 57.0}
    for (row, seed), seg in scores.items():
        leave_run(tmp_path / str(3 * row + seed), "+experiment=synthetic", rows[row], f"seed={seed}", seg=seg)
    code, text = run(sweep_report, f"runs={tmp_path}")
    assert code == 0
    best, last = text.split("**last validation**")
    assert "| method.labels=cam | 0, 1, 2 | 45.0 ± 5.3 | 90.0 ± 0.0 |  |" in best
    assert "| method.labels=cam | 0, 1, 2 | 44.0 ± 5.3 | 90.0 ± 0.0 |  |" in last
    assert "| method.labels=par | 0, 1 (not 2) | 51.0 ± 8.5 | 90.0 ± 0.0 | +6.0 ± 1.0 (p = 0.105) |" in last
    assert "- method.labels=par seed=2: never started" in text
    assert "- method.labels=par: no seed 2" in text
    assert (tmp_path / f"{FILE}.md").read_text() in text
    code, message = run(sweep_report, f"runs={tmp_path}", "strict=true")
    assert code == 1
    assert message.startswith(
        "error: strict=true, and not all is there: method.labels=par seed=2: never started"
    )
    assert len(message.splitlines()) == 1


def test_seeds_without_a_difference_have_no_significance():
    row = pd.Series({0: 51.0, 1: 54.0, 2: 50.5, 7: 0.0})
    assert math.isnan(paired_difference(row, row).p)
    assert math.isnan(paired_difference(row, pd.Series({0: 1.0})).p)
    assert paired_difference(row, pd.Series({5: 1.0})).seeds == []


def test_a_complete_sweep_passes_strictly_and_writes_csv_and_plot(run, tmp_path):
    announce(tmp_path, "optim.lr=0.001,0.002", "seed=0,1")
    for number, (rate, seed) in enumerate([("0.001", 0), ("0.001", 1), ("0.002", 0), ("0.002", 1)]):
        leave_run(tmp_path / str(number), f"optim.lr={rate}", f"seed={seed}", seg=50.0 + number)
    out = tmp_path / "report"
    assert run(sweep_report, f"runs=[{tmp_path}]", f"out={out}", "strict=true", "plot=last")[0] == 0
    lines = list(csv.DictReader((out / f"{FILE}.csv").read_text().splitlines()))
    (line,) = (
        each
        for each in lines
        if (each["setting"], each["validation"], each["score"]) == ("optim.lr=0.002", "last", "seg")
    )
    assert (line["mean"], line["std"], line["seeds"]) == ("52.500", "0.707", "0 1")
    assert (line["values"], line["delta"], line["delta_se"]) == ("52.000 53.000", "2.000", "0.000")
    with Image.open(out / f"{FILE}.png") as picture:
        assert np.asarray(picture).std() > 10


def test_runs_that_do_not_count_are_named(tmp_path):
    leave_run(tmp_path / "0", "seed=0", "optim.lr=0.001", seg=50.0)
    leave_run(tmp_path / "1", "seed=1", "optim.lr=0.001", seg=10.0, step=7)
    leave_run(tmp_path / "2", "seed=2", "optim.lr=0.001", seg=50.0)
    (tmp_path / "2" / "metrics.json").unlink()
    leave_run(tmp_path / "3", "seed=3", "optim.lr=0.001", seg=50.0)
    (tmp_path / "3" / "metrics.json").write_text("{")
    sweep = find_runs([tmp_path])
    assert [each.seed for each in sweep.runs] == [0]
    assert [line.partition(" (")[0] for line in sweep.missing] == [
        "seed=1: stopped, or still running: step 7 of 20000",
        "seed=2: failed, or not validated yet: no metrics.json",
        "seed=3: metrics.json cannot be read",
    ]


def test_of_equal_runs_the_later_counts_and_both_are_named(tmp_path):
    for name, seg in (("9", 50.0), ("10", 60.0)):
        leave_run(tmp_path / name, "seed=0", seg=seg)
    rows, problems = make_rows(find_runs([tmp_path]))
    assert dict(tabulate(rows)["last", "seg"]) == {("unchanged", 0): 60.0}
    assert problems == [f"{tmp_path}/9: has setting and seed of {tmp_path}/10, which counts"]


def test_where_data_lie_and_devices_make_no_other_row(tmp_path):
    leave_run(tmp_path / "0", "+experiment=voc", "seed=0", "data.root=/a", seg=50.0)
    leave_run(tmp_path / "1", "+experiment=voc", "seed=1", "data.root=/b", "trainer.devices=2", seg=51.0)
    leave_run(tmp_path / "2", "+experiment=voc", "seed=0", "backbone.pretrained=null", seg=20.0)
    rows, problems = make_rows(find_runs([tmp_path]))
    assert {title: sorted(row) for title, row in rows.items()} == {
        "unchanged": [0, 1],
        "backbone.pretrained=null": [0],
    }
    assert problems == ["backbone.pretrained=null: no seed 1"]
    assert "(seeds" not in write_markdown(tabulate(rows), problems)


def test_differences_of_fewer_seeds_than_the_rows_say_so(tmp_path):
    for number, (rate, seed) in enumerate([("0.001", 0), ("0.002", 0), ("0.002", 1)]):
        leave_run(tmp_path / str(number), f"optim.lr={rate}", f"seed={seed}", seg=50.0 + number)
    rows, problems = make_rows(find_runs([tmp_path]))
    text = write_markdown(tabulate(rows), problems)
    assert "| optim.lr=0.002 | 0, 1 | 51.5 ± 0.7 | 90.0 ± 0.0 | +1.0 (seeds 0) |" in text


def test_settings_of_one_command_line_and_other_defaults_are_two_rows(tmp_path):
    for number, rate in enumerate((0.001, 0.002)):
        leave_run(tmp_path / str(number), "seed=0", seg=50.0)
        config = OmegaConf.load(tmp_path / str(number) / ".hydra/config.yaml")
        config.optim.lr = rate
        OmegaConf.save(config, tmp_path / str(number) / ".hydra/config.yaml")
    rows, problems = make_rows(find_runs([tmp_path]))
    assert (list(rows), problems) == (["unchanged", "unchanged (row 2)"], [])


@pytest.mark.parametrize("argument", ["runs=nowhere", "runs=.", "runs=[.]", "plot=worst"])
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    code, message = run(sweep_report, argument, *([] if "runs" in argument else ["runs=."]))
    assert code == 1
    assert message.startswith(f"error: {argument.replace('[.]', '')}"[:11])
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("sweep", "count"), GRIDS.items())
def test_every_grid_has_as_many_settings_as_jobs(sweep, count, tmp_path):
    missing = jobs_of(sweep, tmp_path)
    assert len(set(missing)) == len(missing) == count
    assert all(line.endswith(": never started") for line in missing)


def test_every_sweep_is_tested_and_its_header_gives_the_command():
    files = {path.stem: path.read_text() for path in Path(CONFIG_DIR, "sweep").glob("*.yaml")}
    assert set(files) == {*GRIDS, "optuna"}
    for name, text in files.items():
        command = re.search(r"wsss-afa train -m (\+experiment=\w+ \+sweep=\w+)", text)
        assert command is not None
        if name != "optuna" or importlib.util.find_spec("optuna"):
            assert compose(*command[1].split()).hydra.runtime.choices.sweep == name


@pytest.mark.parametrize("experiment", ["synthetic", "coco"])
def test_rows_of_tables_2_and_3_are_what_they_are_called(experiment):
    own = compose(f"+experiment={experiment}")

    def labels(row):
        cfg = compose(f"sweep/{row}", f"+experiment={experiment}", f"+sweep={row.partition('=')[0]}")
        assert cfg.optim == own.optim
        assert cfg.method.refine == own.method.refine
        late = cfg.method.phases.propagation >= cfg.trainer.max_steps
        return (
            cfg.method.labels, late, cfg.method.weights.aff / own.method.weights.aff, cfg.method.weights.reg
        )  # fmt: skip

    assert labels("table2=baseline") == ("cam", False, 1, 0)
    assert labels("table2=par") == labels("table3=no_affinity") == ("par", False, 1, 0)
    assert labels("table2=affinity") == labels("table3=no_propagation") == ("afa", True, 1, 0)
    assert labels("table2=afa") == labels("table3=full") == ("afa", False, 1, 0)
    assert labels("table2=afa_reg") == ("afa", False, 1, 0.01)
    assert labels("table3=attention") == labels("table3=untaught") == ("afa", False, 0, 0)


def test_table_2_with_its_crf_row_in_two_commands(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(train, "-m", *SMALL, "+sweep=table2", "seed=0", "hydra.sweep.dir=table2")[0] == 0
    own = ["data.image_size=32", "data.num_classes=3", "data.val_images=3", "trainer.accelerator=cpu"]
    crf = ["protocol=afa", "protocol.long_side=null", "protocol.scales=[1.0]", "~callbacks.report"]
    checkpoint = "ckpt=table2/3/checkpoints/best.ckpt"
    assert (
        run(evaluate, checkpoint, *own, *crf, "callbacks.pictures.num_images=0", "hydra.run.dir=crf")[0] == 0
    )
    code, text = run(sweep_report, "runs=[table2,crf]", "strict=true")
    assert code == 0
    rows = re.findall(r"^\| (\S+)(.*?) \| 0 \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["baseline", "par", "afa", "afa_reg", "afa_reg"] * 2
    assert rows[4][1].startswith(" ckpt=best.ckpt protocol=afa")
    assert [row[3] == "–" for row in rows[:5]] == [True, True, False, False, False]  # propagated CAM
    assert [row[5] == "–" for row in rows[:5]] == [True, True, True, True, False]  # after CRF
    scores = json.loads((tmp_path / "crf" / "metrics.json").read_text())
    assert rows[4][5] == f"{scores['val/miou_crf']:.1f}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # their own
@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("optuna", ["+sweep=optuna", "hydra.sweeper.n_trials=1"]),
        ("submitit", ["hydra/launcher=submitit_local"]),
        ("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]),
    ],
)
def test_sweepers_and_launchers_of_hydra(package, arguments, run, tmp_path, monkeypatch):
    plugin = "hydra_optuna_sweeper" if package == "optuna" else f"hydra_{package}_launcher"
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"needs {plugin.replace('_', '-')}")
    monkeypatch.chdir(tmp_path)
    code, output = run(train, "-m", *SMALL, *arguments, "hydra.sweep.dir=sweep")
    assert code == 0, output
    assert len(find_runs([tmp_path / "sweep"]).runs) == 1
    assert (tmp_path / "sweep" / "optimization_results.yaml").is_file() == (package == "optuna")


def test_tensorboard_gets_the_scores(run, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    assert run(train, *SMALL, "logger=tensorboard", f"hydra.run.dir={tmp_path}")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    results = json.loads((tmp_path / "metrics.json").read_text())
    (score,) = events.Scalars("val/miou_seg")
    assert round(100 * score.value, 2) == round(results["last"]["val/miou_seg"], 2)
