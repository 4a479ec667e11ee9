"""The method of docs/adding_a_method.md trains and is used without a change to the package."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import wsss_afa
from page_files import ADDING_A_METHOD, write_files
from wsss_afa import evaluate, predict, pseudo_labels, train
from wsss_afa.data.synthetic import SyntheticScenes

SCENES = (
    "data=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=12",
    "data.val_images=4",
)
SHORT = (
    "backbone=mit", "backbone.variant=tiny", "backbone.pretrained=null", "backbone.strides=[4,2,1,1]",
    "method.cam.scales=[1.0]", "method.phases.segmentation=3", "optim.warmup_steps=2", "data.batch_size=4",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=1", "trainer.accelerator=cpu", "callbacks.pictures.num_images=1",
)  # fmt: skip
TRUST = "trust=[pixelcam.PixelCAM]"


def package_state() -> dict[Path, int]:
    """When each file of the package was changed last."""
    files = [path for path in Path(wsss_afa.__file__).parent.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The reader's folder, with the page's files."""
    files = write_files(ADDING_A_METHOD, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "pixelcam.py",
        "conf/method/pixelcam.yaml",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("pixelcam", None)


def test_the_method_of_the_page_trains_and_is_used(folder, run):
    before = package_state()
    code, said = run(train, "--config-dir", "conf", "method=pixelcam", *SCENES, *SHORT, "hydra.run.dir=run")
    assert code == 0, said
    assert f"best.ckpt source=PHOTOS {TRUST}" in said, "the closing lines can be typed as they are"
    with Path("run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    seg = [row["train/loss_seg"] for row in rows if row["train/loss"]]
    assert [loss != "" for loss in seg] == [False] * 3 + [True] * 3, "the phase begins at step 3"
    losses = [float(row[name]) for row in rows for name in row if name.startswith("train/loss") and row[name]]
    assert np.isfinite(losses).all()

    checkpoint = "ckpt=run/checkpoints/last.ckpt"
    code, said = run(evaluate, checkpoint, *SCENES, "hydra.run.dir=refused", "trainer.accelerator=cpu")
    assert code == 1
    assert said.count("\n") == 0
    assert "pixelcam.PixelCAM, which is no part of this library: refused" in said
    assert TRUST in said

    code, said = run(evaluate, checkpoint, *SCENES, TRUST, "hydra.run.dir=scores", "trainer.accelerator=cpu")
    assert code == 0, said
    scores = json.loads(Path("scores/metrics.json").read_text())
    assert {"val/miou_seg", "val/miou_cam", "val/map_cls"} <= scores.keys()
    assert Path("scores/report.html").is_file()

    Image.fromarray(SyntheticScenes(1, 32)[0]["image"]).save("photo.png")
    code, said = run(predict, checkpoint, "source=photo.png", "out=found", "device=cpu", TRUST)
    assert code == 0, said
    assert cv2.imread("found/masks/photo.png").shape[:2] == (32, 32)
    assert json.loads(Path("found/predictions.json").read_text())["images"][0]["file"] == "photo.png"

    labels = (checkpoint, *SCENES, "source=cam", "out=labels", "trainer.accelerator=cpu", TRUST)
    code, said = run(pseudo_labels, *labels, "hydra.run.dir=labelling")
    assert code == 0, said
    written = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in Path("labels").glob("*.png")]
    assert len(written) == 12
    assert {label.shape[:2] for label in written} == {(32, 32)}

    assert package_state() == before, "the package was changed"


def test_help_and_mistakes_know_the_readers_folder(folder, run):
    code, said = run(train, "--config-dir", "conf", "method=pixelcam", "--help")
    assert code == 0, said
    assert "method.high=0.55" in said
    assert "scores above it are the class" in said
    assert "[pixelcam]" in said
    code, said = run(train, "--config-dir=conf", "method=pixelcam", "method.hihg=0.5")
    assert code == 1
    assert "did you mean method.high?" in said
    code, said = run(train, "--config-dir", "elsewhere", "method=pixelcam")
    assert code == 1
    assert said.count("\n") == 0
    assert "elsewhere" in said
