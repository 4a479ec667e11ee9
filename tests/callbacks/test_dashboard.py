"""A run's dashboards, read back from the files: every item is there and says what the run's own files say."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from wandb_file import Run, isolated

CLASSES = ["background", "disc", "box", "triangle"]
STEPS, VALIDATIONS = 6, (3, 5)
"""Optimiser steps, and those that a validation followed, counted from 0 as loggers do."""
SMALL = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=40",
    "data.val_images=4",
    "data.batch_size=4",
    "method.decoder_dim=16",
    "method.phases.segmentation=2",
    "method.phases.propagation=4",
    f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=4",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.pictures.num_images=2",
]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Folder and output of a sweep of two short runs, in one process, with every logger."""
    root = tmp_path_factory.mktemp("sweep")
    loggers = "logger=[wandb,tensorboard]" if has_tensorboard() else "logger=wandb"
    command = [sys.executable, "-m", "wsss_afa.train", "-m", *SMALL, "seed=0,1", loggers]
    done = subprocess.run(
        [*command, f"hydra.sweep.dir={root}/pair"],
        cwd=root,
        env=isolated(root),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root / "pair", done.stdout + done.stderr


def has_tensorboard() -> bool:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return False
    return True


def offline_folder(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*")
    return found


@pytest.fixture(scope="module")
def folder(sweep):
    return sweep[0] / "0"


@pytest.fixture(scope="module")
def run(folder):
    return Run(offline_folder(folder))


@pytest.fixture(scope="module")
def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_without_a_key_one_line_says_how_to_upload(sweep):
    root, output = sweep
    lines = [line for line in output.splitlines() if "wandb" in line.lower() and "[HYDRA]" not in line]
    uploads = [f"wandb sync {offline_folder(root / name)}" for name in ("0", "1")]
    assert len(lines) == 2, "one for each run"
    for line, upload in zip(lines, uploads, strict=True):
        assert line == f"wandb     offline (no API key), upload with: {upload}"


def test_runs_of_a_sweep_are_a_group_of_their_own_runs(sweep):
    first, second = (Run(offline_folder(sweep[0] / name)) for name in ("0", "1"))
    assert (first.run.run_group, second.run.run_group) == ("pair", "pair")
    assert (first.run.display_name, second.run.display_name) == ("pair/0", "pair/1")
    assert first.run.run_id != second.run.run_id
    assert (first.config["seed"], second.config["seed"]) == (0, 1)
    assert set(first.logged("train/loss")) == set(second.logged("train/loss")) == set(range(STEPS))


SCALARS = {
    "train/loss": 0,  # and the step from which on it is logged
    "train/loss_cls": 0,
    "train/loss_seg": 2,
    "train/loss_aff": 2,
    "train/gradient_norm": 0,
    "train/ignored_pixels": 2,
    "train/background_pixels": 2,
    "train/foreground_pixels": 2,
    "train/positive_pairs": 2,
    "train/negative_pairs": 2,
    "train/false_affinity": 2,
    "train/missed_affinity": 2,
    "train/saturated_affinity": 2,
    "lr/encoder": 0,
    "lr/norm": 0,
    "lr/head": 0,
    "lr/decoder": 0,
    "speed/images_per_s": 0,
}


@pytest.mark.parametrize("name", SCALARS)
def test_every_number_is_in_the_history_as_in_the_csv(name, run, rows):
    logged = run.logged(name)
    assert set(logged) == set(range(SCALARS[name], STEPS))
    written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
    assert logged == pytest.approx(written, rel=1e-6)
    assert all(math.isfinite(value) and value >= 0 for value in logged.values())


def test_numbers_make_sense(run):
    for step, share in run.logged("train/ignored_pixels").items():
        rest = [run.logged(f"train/{name}_pixels")[step] for name in ("background", "foreground")]
        assert share + sum(rest) == pytest.approx(1, abs=1e-6)
    assert run.logged("train/positive_pairs")[2] > 0
    assert run.logged("lr/decoder")[3] == pytest.approx(5 * run.logged("lr/encoder")[3])
    assert run.logged("train/gradient_norm")[4] > 0


@pytest.mark.parametrize("source", ["cam", "affinity", "seg"])
def test_scores_are_those_of_the_results(source, run, folder):
    results = json.loads((folder / "metrics.json").read_text())
    logged = run.logged(f"val/miou_{source}")
    assert set(logged) == set(VALIDATIONS)
    assert 100 * logged[5] == pytest.approx(results["last"][f"val/miou_{source}"], abs=1e-3)
    assert run.summary[f"val/miou_{source}"]["max"] == max(logged.values())


def test_iou_by_class_is_a_table(run, folder):
    results = json.loads((folder / "metrics.json").read_text())["last"]["iou"]
    table = run.table("val/iou_by_class", 5)
    assert [row["class"] for row in table] == CLASSES
    for column, source in {"CAM": "cam", "propagated CAM": "affinity", "segmentation": "seg"}.items():
        assert [row[column] for row in table] == pytest.approx(list(results[source].values()), abs=1e-3)


def test_the_confusion_matrix_is_a_chart_and_a_picture(run):
    pairs = run.table("val/confusion_chart_table", 5)
    assert sum(pair["nPredictions"] for pair in pairs) <= 4 * 32 * 32
    assert {pair["Actual"] for pair in pairs} <= set(CLASSES)
    hits = sum(pair["nPredictions"] for pair in pairs if pair["Actual"] == pair["Predicted"] == "background")
    union = sum(pair["nPredictions"] for pair in pairs if "background" in (pair["Actual"], pair["Predicted"]))
    assert 100 * hits / union == pytest.approx(run.table("val/iou_by_class", 5)[0]["segmentation"])
    assert run.config["_wandb"]["visualize"]["val/confusion_chart"]["panel_type"] == "Vega2"
    assert picture(run, "val/confusion", 5).std() > 10


def picture(run: Run, key: str, step: int) -> np.ndarray:
    with Image.open(run.files / run.logged(key)[step]["path"]) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_images_have_labels_as_named_masks(run):
    for step in VALIDATIONS:
        shown = run.logged("images/labels")[step]
        assert shown["count"] == 2
        assert all(caption.startswith("val_00000") for caption in shown["captions"])
        for masks in shown["all_masks"]:
            assert set(masks) == {"PAR label", "propagated label", "prediction", "truth"}
            for mask in masks.values():
                with Image.open(run.files / mask["path"]) as image:
                    values = np.asarray(image)
                assert values.shape == (32, 32)
                assert set(np.unique(values)) <= {0, 1, 2, 3, 255}
    names = run.config["_wandb"]["mask/class_labels"]
    for title in ("prediction", "truth", "propagated label"):
        labels = names[f"images/labels_wandb_delimeter_{title}"]["value"]
        assert labels == {**{str(i): name for i, name in enumerate(CLASSES)}, "255": "ignored"}


@pytest.mark.parametrize(
    ("key", "title"),
    [("images", "CAM")] + [("points", title) for title in ("CAM", "attention", "affinity", "propagated CAM")],
)
def test_maps_are_shown_as_heat(key, title, run):
    for step in VALIDATIONS:
        shown = run.logged(f"{key}/{title}")[step]
        assert shown["count"] >= 2
        for name in shown["filenames"]:
            with Image.open(run.files / name) as image:
                assert image.size == (32, 32)
                assert np.asarray(image).std() > 5


def test_pictures_are_those_of_the_run_folder(run, folder):
    for key, ending in {"images": "", "points": "_points"}.items():
        with Image.open(folder / "pictures" / f"step_000006{ending}.png") as image:
            expected = np.asarray(image.convert("RGB")).astype(float)
        assert np.array_equal(picture(run, f"pictures/{key}", 5), expected)


def test_settings_commit_and_versions(run, folder):
    composed = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert run.config["optim"]["lr"] == composed["optim"]["lr"]
    assert run.config["method"]["affinity_radius"] == composed["method"]["propagate"]["radius"], "resolved"
    record = json.loads((folder / "run.json").read_text())
    assert run.config["run"] == record
    assert record["versions"]["torch"] == torch.__version__
    assert record["backbone"] == {"source": None, "sha256": None}, "random weights"
    if (Path(__file__).parents[2] / ".git").exists():
        assert len(record["commit"].removesuffix("-dirty")) == 40
    listed = (run.files / "requirements.txt").read_text().lower()
    assert all(f"\n{name}==" in f"\n{listed}" for name in ("torch", "lightning", "timm", "wandb"))


def test_the_best_checkpoint_is_an_artifact(run, folder):
    (artifact,) = (artifact for artifact in run.artifacts if artifact.type == "model")
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert {"best", f"step_{best['step']}"} <= set(artifact.aliases)
    assert json.loads(artifact.metadata)["val/miou_seg"] == best["val/miou_seg"]
    (entry,) = artifact.manifest.contents
    content = (folder / "checkpoints" / "best.ckpt").read_bytes()
    assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()  # noqa: S324
    assert entry.local_path == str(folder / "checkpoints" / "best.ckpt"), "not copied"


@pytest.mark.skipif(not has_tensorboard(), reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_numbers_pictures_and_tables(folder, rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()
    assert set(SCALARS) | {"val/miou_seg", "val/map_cls"} <= set(tags["scalars"])
    assert "hp_metric" not in tags["scalars"]
    written = {int(row["step"]): float(row["train/loss"]) for row in rows if row["train/loss"]}
    assert {e.step: e.value for e in events.Scalars("train/loss")} == pytest.approx(written, rel=1e-6)
    assert {"pictures/images", "pictures/points", "val/confusion"} <= set(tags["images"])
    (first, last) = events.Images("pictures/points")
    assert (first.step, last.step) == VALIDATIONS
    with Image.open(folder / "pictures" / "step_000006_points.png") as image:
        assert (last.width, last.height) == image.size
    table = events.Tensors("val/iou_by_class/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert table.splitlines()[0] == "| class | CAM | propagated CAM | segmentation |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]] == CLASSES
    settings = yaml.safe_load((folder / "tensorboard" / "hparams.yaml").read_text())
    assert settings["optim"]["lr"] == 5e-4
