"""The backbone, the loss and the data set of docs/adding_parts.md train and predict as they stand there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from page_files import ADDING_PARTS, commands, write_files
from quiet import QUIET
from wsss_afa import predict, train

pytestmark = QUIET


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The reader's folder, with the page's files and a photo."""
    write_files(ADDING_PARTS, tmp_path)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((40, 48, 3), 128, np.uint8)).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("small_vit", "focal", "spots"):
        sys.modules.pop(name, None)


def test_the_parts_of_the_page_train_and_predict(folder, run):
    (words,) = commands(ADDING_PARTS, "train")
    code, said = run(train, *words, "trainer.accelerator=cpu", "callbacks.pictures.num_images=0")
    assert code == 0, said
    assert (
        "--config-dir conf ckpt=runs/parts/checkpoints/best.ckpt data=spots trainer.accelerator=cpu" in said
    )
    assert "data      spots: 40 training images" in said
    (words,) = commands(ADDING_PARTS, "predict")
    code, said = run(predict, *words[:-1], "device=cpu", "hydra.run.dir=found")
    assert code == 1
    assert "add trust=[" in said
    code, said = run(predict, *words, "device=cpu", "hydra.run.dir=found")
    assert code == 0, said
    assert json.loads(Path("found/predictions.json").read_text())["images"][0]["file"].endswith("a.png")
