"""`python -m wsss_afa.benchmark`: what it times and sums up, and PAR's memory beside the slow version's."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from wsss_afa import benchmark, growth
from wsss_afa.benchmark import measure, summarise
from wsss_afa.benchmark_parts import BASE, Part
from wsss_afa.cli.config_dir import CONFIG_DIR

REFERENCE = Path(__file__).with_name("reference.py")
SMALL = [
    "crop_size=64",
    "num_classes=3",
    "rounds=1",
    "keep_memory=false",  # which would last for the tests after
    "model.decoder_dim=16",
    "model.backbone.variant=tiny",
    f"reference={REFERENCE}",
]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The program in this process; returns the folder that it wrote to."""

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *SMALL, f"hydra.run.dir={tmp_path}", *arguments])
        benchmark.main()
        return tmp_path

    return program


def small_config(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        return compose("benchmark", [*SMALL, *overrides])


def test_every_part_is_timed(run):
    report = json.loads((run("cpu_time=true") / "benchmark.json").read_text("utf-8"))
    rows = {row["part"]: row for row in report["rows"]}
    assert list(rows)[:4] == [BASE, "step, first phase", "step, second phase", "step, third phase"]
    assert {"multi-scale CAM", "propagation", "PAR, three maps", "dense CRF, one image"} < set(rows)
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows[BASE]["ratio"] == 1
    assert rows["step, third phase"]["ratio"] > 1
    assert rows["matrix product"]["arithmetic"] == rows["copy"]["bandwidth"] == 1
    assert rows["PAR, three maps"]["faster"] > 0
    assert rows["multi-scale CAM"]["gflops"] > 0
    assert all(len(seconds) == 1 for seconds in report["seconds"].values())
    assert report["peak_gib"] > 0


def test_a_round_that_warms_up_is_not_counted():
    calls = []
    parts = {
        "a": Part(lambda: calls.append("a")),
        "b": Part(lambda: calls.append("b"), reference=lambda: calls.append("slow")),
    }
    seconds = measure(parts, 2, torch.device("cpu"))
    assert calls == ["a", "b", "slow"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "b, reference": 2}


def test_medians_ratios_and_rates():
    parts = {
        BASE: Part(print, flops=8e9),
        "fast": Part(print, bytes=1e9, reference=print),
        "matrix product": Part(print, flops=4e9),
        "copy": Part(print, bytes=8e9),
    }
    seconds = {
        BASE: [4.0, 1.0, 2.0],
        "fast": [1.0],
        "fast, reference": [12.0],
        "matrix product": [0.5],
        "copy": [2.0],
    }
    base, fast, *_ = summarise(parts, seconds)
    assert (base["seconds"], base["gflops"], base["arithmetic"], base["faster"]) == (2, 4, 0.5, None)
    assert (fast["ratio"], fast["faster"], fast["gbytes"], fast["bandwidth"]) == (0.5, 12, 1, 0.25)
    assert fast["gflops"] is fast["arithmetic"] is base["gbytes"] is None


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("precision=int8", "precision=int8 is not known; need one of float32"),
        ("reference=nowhere.py", "reference=nowhere.py: no such file"),
    ],
)
def test_mistakes_are_told(run, argument, told):
    with pytest.raises(SystemExit, match=told):
        run(argument)


def test_growth_is_a_power():
    points = [{"size": size, "seconds": 3 * size**2, "gib": 0.5 * size} for size in (1.0, 2.0, 4.0)]
    found = growth._powers(points)
    assert found["time_power"] == pytest.approx(2)
    assert found["memory_power"] == pytest.approx(1)
    assert found["seconds_at_10"] == pytest.approx(3 * 40**2)
    assert found["gib_at_10"] == pytest.approx(20)


def test_growth_varies_one_setting_alone(monkeypatch):
    changed = []
    monkeypatch.setattr(growth, "_apart", lambda _, cfg: changed.append(cfg) or (2.0 * cfg.batch_size, 1.0))
    cfg = small_config()
    cfg.vary = {"batch_size": [1, 4], "pseudo_label.cam.scales": [[1.0], [1.0, 0.5]]}
    found = growth.measure_growth(cfg)
    assert [(each.batch_size, len(each.pseudo_label.cam.scales)) for each in changed] == [
        (1, 3), (4, 3), (2, 1), (2, 2)
    ]  # fmt: skip
    assert [(point["size"], point["seconds"]) for point in found["batch_size"]["points"]] == [(1, 2), (4, 8)]
    assert [point["size"] for point in found["pseudo_label.cam.scales"]["points"]] == [1, 1.25]
    assert found["batch_size"]["time_power"] == pytest.approx(1)


def test_growth_measures_a_step():
    seconds, gib = growth._one_step(OmegaConf.to_container(small_config(), resolve=True))
    assert seconds > 0
    assert gib >= 0


def test_par_never_holds_all_neighbours_of_all_maps():
    point = growth.measure_par_growth(small_config("crop_size=512", "par_maps=[6]"))[0]
    assert point["maps"] == 6
    assert point["reference_mib"] > 48 * 6 * 256**2 * 4 / 2**20
    assert point["mib"] < point["reference_mib"] / 10
