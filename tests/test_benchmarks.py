"""The programs of `benchmarks/` run and print what they say, on a setting of no size."""

from __future__ import annotations

import importlib
import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import cam_precision
import clip_methods
import dense_energy
import images_per_second
import scaling
import timing
import token_methods
import training_step

TINY = ["method.decoder_dim=16", "backbone.variant=tiny", "--rounds", "1", "--threads", "1"]


def rows_of(output):
    """Numbers of each table's rows, by what stands before them."""
    lines = [line.split("  ") for line in output.splitlines()]
    return {
        line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines if line[1:]
    }


def test_parts_of_a_step_are_multiples_of_the_networks_pass(capsys):
    training_step.main([*TINY, "--crop", "64", "--classes", "3", "--reference-crop", "64"])
    parts, references = map(rows_of, capsys.readouterr().out.split("against"))
    assert parts["part"] == ["s", "× network"]
    assert parts["network"][1] == "1.000"
    assert {"step, classification", "PAR", "propagation", "loss of affinity", "optimizer"} < set(parts)
    assert float(parts["step, propagation"][1]) > 1
    slow = {"multi-scale CAM", "PAR", "affinity", "propagation"}
    assert slow <= set(references)
    assert all(float(references[name][2]) > 0 for name in slow)


def test_precisions_of_the_maps_are_compared(capsys):
    cam_precision.main(["-", *TINY, "--crop", "64", "--batch", "1", "--classes", "3"])
    rows = rows_of(capsys.readouterr().out)
    assert {"multi-scale CAM, bf16", "step, float32", "step, bf16"} < set(rows)
    assert float(rows["network"][2]) == pytest.approx(10.6)


def test_ways_to_the_dense_energy_are_compared(capsys):
    dense_energy.main([*TINY, "--crop", "64", "--batch", "1", "--classes", "3", "--full"])
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["L_reg, full matrix"][3]) < 1e-4
    assert float(rows["L_reg, lattice"][4]) > 0.9


def test_steps_of_token_methods_are_multiples_of_the_networks_pass(capsys):
    vit = [
        "backbone.name=vit_tiny_patch16_224",
        "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2}",
    ]
    words = [
        *vit,
        "method.decoder_dim=16",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--crop",
        "128",
        "--classes",
        "3",
    ]
    token_methods.main([*words, "--batch", "1"])
    toco, more = map(rows_of, capsys.readouterr().out.split("\nmore"))
    assert toco["network"][1] == more["network"][1] == "1.00"
    assert {"step, contrast", "image and view in one pass", "in the passes of the program"} < set(toco)
    assert {"step, classification", "step, main"} < set(more)


def test_steps_on_a_frozen_clip_are_multiples_of_its_pass_and_labels_have_their_pace(capsys):
    tower = "++backbone.model_args={embed_dim: 24, depth: 6, num_heads: 2, num_classes: 8}"
    words = [tower, "--rounds", "1", "--threads", "1", "--crop", "64", "--classes", "3"]
    clip_methods.main(words)
    tables = capsys.readouterr().out.strip().split("\n\n")
    found = {each.partition(",")[0]: rows_of(each) for each in tables}
    assert found["weclip"]["tower"][1] == found["excel"]["tower"][1] == "1.00"
    assert {"step, static", "step, refined"} < set(found["weclip"])
    labels = found["clip_es"]
    assert {"GradCAM of 2, closed form", "GradCAM of 2, class by class", "label, source=static"} < set(labels)
    assert float(labels["label, source=walk"][1]) > float(labels["label, source=static"][1])


def test_protocols_files_and_labels_have_their_pace(capsys, tmp_path):
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "photo.jpg")
    images_per_second.main([*TINY, "--classes", "3", "--photo", str(tmp_path / "photo.jpg")])
    parts, labels = map(rows_of, capsys.readouterr().out.split("\nlabels, "))
    assert parts["protocol=plain"][2] == "1.00"
    assert {"protocol=afa", "CRF", "predict: all", "predict: all, with heat maps"} < set(parts)
    assert float(labels["source=par"][3]) > 0
    assert len(labels["source=affinity"]) == 2


def test_growth_is_compared_with_the_first_value(capsys, monkeypatch):
    monkeypatch.setattr(scaling, "memory_apart", lambda *of: 1 + scaling.memory_of(*of))
    scaling.main([*TINY, "--crop", "64", "128", "--batch", "2", "--classes", "3"])
    rows = rows_of(capsys.readouterr().out)
    assert rows["crop 64 batch 2 classes 3"][1] == "1.00"
    seconds, ratio, power, gib, _ = rows["crop 128"]
    assert float(seconds) > 0
    assert float(power) == pytest.approx(math.log2(float(ratio)), abs=0.05)
    assert float(gib) >= 0


def test_parts_run_in_turn():
    calls = []
    parts = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    options = Namespace(device="cpu", precision="float32", threads=1, rounds=2, cpu_time=False)
    assert set(timing.measure(parts, options)) == {"a", "b"}
    assert [name for name, last in zip(calls, [None, *calls], strict=False) if name != last] == list("abab")


@pytest.fixture
def gpu():
    """The program for GPUs, imported here: the compiler that it reads from takes long, and warns."""
    return importlib.import_module("gpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gpu_program_measures_a_method_in_its_last_phase(gpu, tmp_path, capsys):
    file, only = tmp_path / "gpu.json", ["--device", "cpu", "--small", "--only", "more, bf16.*plain$"]
    gpu.main([str(file), *only])
    (part,) = json.loads(file.read_text())["parts"].values()
    assert "error" not in part
    assert part["result"]["steps"] == 20_000
    assert len(part["result"]["phases"]) == 1
    assert "| more | 2 × 128 | bf16-mixed |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_gpu_program_says_what_it_had_no_time_for(gpu, tmp_path, capsys):
    file, only = tmp_path / "gpu.json", ["--device", "cpu", "--small", "--only", "^PAR|validation: protocol"]
    gpu.main([str(file), *only, "--minutes", "0"])
    first, *others = json.loads(file.read_text())["parts"].values()
    assert "result" in first
    assert {each["error"] for each in others} == {"skipped: no time left"}
    assert "no time left" in capsys.readouterr().out
