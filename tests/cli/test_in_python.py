"""Programs as functions: they compose as the commands do, and return what they left behind."""

from __future__ import annotations

import inspect
import json
import sys
import warnings

import numpy as np
import pytest

import wsss_afa
from quiet import QUIET
from wsss_afa import Predictor, evaluate, train
from wsss_afa.errors import UserError

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The dirpath has changed")]
SMALL = [
    "data.image_size=32", "data.num_classes=3", "data.train_images=40", "data.val_images=4",
    "data.batch_size=4", "method.decoder_dim=16", "method.phases.segmentation=2",
    "method.phases.propagation=4", "trainer.max_steps=6", "trainer.val_check_interval=3",
    "trainer.accelerator=cpu", "callbacks.pictures.num_images=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training, in a folder whose name has signs that mean something to Hydra."""
    return train("synthetic", SMALL, tmp_path_factory.mktemp("a, 'b'"))


def test_training_returns_folder_scores_and_checkpoint(trained):
    record = json.loads((trained.folder / "metrics.json").read_text())
    assert trained.scores == record["best"]
    assert 0 < trained.scores["val/miou_seg"] < 100
    assert trained.folder.name.startswith("a, 'b'")
    prediction = Predictor.from_checkpoint(trained.checkpoint)(np.zeros((32, 32, 3), np.uint8))
    assert prediction.label.shape == (32, 32)


def test_a_complete_run_is_not_repeated_and_its_scores_are_returned(trained, capsys):
    again = train("synthetic", SMALL, folder=trained.folder)
    assert again == trained
    assert "resuming  from step 6" in capsys.readouterr().out


def test_evaluation_returns_the_scores_of_the_checkpoint(trained, tmp_path):
    data = [word for word in SMALL if word.startswith(("data.image", "data.num", "data.val", "trainer.acc"))]
    found = evaluate(trained.checkpoint, data, tmp_path)
    assert found.folder == tmp_path
    assert found.scores["val/miou_seg"] == pytest.approx(trained.scores["val/miou_seg"], abs=1e-6)
    assert (tmp_path / "report.html").is_file()


def test_a_mistake_is_an_error_of_one_line_and_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, shown = list(sys.argv), warnings.formatwarning
    for call, line in (
        (lambda: train("demoo"), "did you mean demo?"),
        (lambda: train("demo", ["trainer.max_stepz=1"]), "did you mean trainer.max_steps?"),
        (lambda: train("demo", ["seed=x"]), "seed"),
        (lambda: train("demo", ["-m", "seed=0,1"]), "-m is an option of the command train"),
        (lambda: evaluate("no where.ckpt"), "ckpt=no where.ckpt: no such file"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert line in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert (sys.argv, warnings.formatwarning) == (words, shown)


def test_functions_show_their_arguments_although_they_are_modules():
    assert list(inspect.signature(train).parameters) == ["experiment", "overrides", "folder"]
    assert list(inspect.signature(evaluate).parameters) == ["checkpoint", "overrides", "folder"]
    assert wsss_afa.train is train
    assert callable(train.main)


def test_the_package_has_nothing_else():
    assert wsss_afa.__all__ == ["Predictor", "evaluate", "train"]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = wsss_afa.trian
