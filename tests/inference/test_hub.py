"""Folders for the hub: the same network to the bit, from a folder or from a server that plays the hub."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from local_hub import LocalHub
from wsss_afa import Predictor, export
from wsss_afa.errors import UserError
from wsss_afa.inference.hub import model_card
from wsss_afa.methods.recipe import load
from wsss_afa.methods.weights_file import WEIGHTS

PHOTO = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one's own, with a token for it and an empty cache."""
    with LocalHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


@pytest.fixture
def run_folder(afa_checkpoint, tmp_path):
    """A run's folder with a checkpoint, scores, and the weights that it began with."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(afa_checkpoint, folder / "checkpoints" / "best.ckpt")
    scores = {"step": 6, "val/miou_seg": 61.25, "val/map_cls": 90.0, "iou": {}}
    metrics = {"protocol": "plain (native size)", "split": "val", "best": scores, "last": {}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    first = {"source": "nvidia/mit-b1", "sha256": "ab" * 32}
    (folder / "run.json").write_text(json.dumps({"backbone": first}))
    return folder


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    return True


@pytest.mark.parametrize("form", ["safetensors", "hf"])
def test_a_file_and_a_folder_are_the_checkpoint_to_the_bit(form, run_folder, run, tmp_path, monkeypatch):
    checkpoint, output = run_folder / "checkpoints" / "best.ckpt", tmp_path / f"out.{form}"
    code, printed = run(export, f"ckpt={checkpoint}", f"format={form}", f"output={output}")
    assert code == 0, printed
    assert f"use       Predictor.from_pretrained('{output}')" in printed
    original, again = load(checkpoint), load(output)
    assert same(original.net.state_dict(), again.net.state_dict())
    assert again.recipe["class_names"] == original.recipe["class_names"]
    one, other = Predictor.from_checkpoint(checkpoint, "cpu"), Predictor.from_pretrained(output, "cpu")
    assert np.array_equal(one(PHOTO).label, other(PHOTO).label)
    assert np.array_equal(one(PHOTO).scores, other(PHOTO).scores)


def test_the_folder_says_what_it_is(run_folder, run, tmp_path):
    assert run(export, f"ckpt={run_folder}/checkpoints/best.ckpt", "format=hf")[0] == 0
    folder = run_folder / "checkpoints" / "best"
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, "config.json", "README.md"}
    about = json.loads((folder / "config.json").read_text())
    assert about["class_names"] == ["disc", "box", "triangle"]
    assert len(about["mean"]) == len(about["std"]) == 3
    card = (folder / "README.md").read_text()
    for text in (
        "library_name: wsss_afa",
        "# AFA on images with tags",
        "| val/miou_seg | 61.2 |",
        "the protocol `plain (native size)`",
        "`nvidia/mit-b1`",
        "for research alone",
        "disc, box, triangle",
    ):
        assert text in card
    assert str(tmp_path) not in card + (folder / "config.json").read_text()
    assert run(export, f"ckpt={run_folder}/checkpoints/best.ckpt", "format=hf")[0] == 0, "it is written over"


def test_what_is_not_known_is_said(afa_checkpoint):
    method = load(afa_checkpoint)
    card = model_card(method, {}, {}, None)
    assert "Nothing is known of them. Ask who made" in card
    assert "They were random" in model_card(method, {}, {"backbone": {"source": None}}, "voc")
    assert "see there for their licence" in model_card(method, {}, {"backbone": {"source": "a/b"}}, None)


def test_a_model_is_pushed_and_comes_back(hub, run_folder, run, tmp_path):
    words = [f"ckpt={run_folder}/checkpoints/best.ckpt", "format=hf", "push=someone/scenes"]
    code, printed = run(export, *words, f"output={tmp_path}/out")
    assert code == 0, printed
    assert f"pushed    {hub.url}/someone/scenes" in printed
    assert sorted(hub.files) == [f"someone/scenes/{name}" for name in ("README.md", "config.json", WEIGHTS)]
    predictor = Predictor.from_pretrained("someone/scenes", "cpu")
    assert same(
        predictor.method.net.state_dict(), load(run_folder / "checkpoints" / "best.ckpt").net.state_dict()
    )
    gets = sum(each.startswith("GET") for each in hub.requests)
    Predictor.from_pretrained("someone/scenes", "cpu")
    assert sum(each.startswith("GET") for each in hub.requests) == gets, "fetched once"


def test_mistakes_get_one_line(hub, run_folder, run, tmp_path, monkeypatch):
    for name, line in {
        "someone/nothing": "someone/nothing: neither a folder nor a model of the hub",
        "nowhere": "nowhere: no such folder; give one that export format=hf wrote, or user/name",
    }.items():
        with pytest.raises(UserError, match=re.escape(line)):
            Predictor.from_pretrained(name)
    ckpt = f"ckpt={run_folder}/checkpoints/best.ckpt"
    code, line = run(export, ckpt, "format=torch", "push=a/b")
    assert (code, line) == (1, "error: push=a/b uploads a folder: set format=hf")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, line = run(export, ckpt, "format=hf", "push=a/b", f"output={tmp_path}/out")
    assert code == 1
    assert line.startswith("error: push=a/b failed (")
    assert len(line.splitlines()) == 1
    assert (tmp_path / "out" / WEIGHTS).is_file()


def test_a_strangers_file_builds_nothing_else(run_folder, run, tmp_path):
    output = tmp_path / "x.safetensors"
    assert (
        run(export, f"ckpt={run_folder}/checkpoints/best.ckpt", "format=safetensors", f"output={output}")[0]
        == 0
    )
    weights, recipe = load_file(output), dict(load(output).recipe)
    evil = recipe | {"method": recipe["method"] | {"_target_": "os.system"}}
    for about, line in (
        ({"wsss_afa": json.dumps(evil)}, "wants to build os.system"),
        ({"wsss_afa": json.dumps([1])}, "its recipe has 'list'"),
        ({"wsss_afa": "{"}, "cannot be read as safetensors with a recipe"),
        ({"wsss_afa": "[" * 100_000}, "cannot be read as safetensors with a recipe"),
        ({}, "has no recipe"),
    ):
        save_file(weights, output, about)
        with pytest.raises(UserError, match=re.escape(line)):
            load(output)
    output.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(output)
    save_file({**weights, "more": torch.zeros(3)}, output, {"wsss_afa": json.dumps(recipe)})
    with pytest.raises(UserError):
        load(output)
