"""From tagged images to masks, scores and a second stage without a checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from quiet import QUIET
from wsss_afa import evaluate, pseudo_labels, train

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:The dirpath has changed")]
SCENES = [
    "data=synthetic",
    "data.image_size=64",
    "data.num_classes=3",
    "data.train_images=4",
    "data.val_images=3",
]
CLIP = [
    "backbone.pretrained=null", "method.texts.pretrained=null",
    "++backbone.model_args={embed_dim: 24, depth: 3, num_heads: 2, num_classes: 8}",
]  # fmt: skip
METHODS = {
    "clip_es": [*CLIP, "method.layers=2"],
    "excel": [*CLIP, "method.calibrated=1", "method.attended=2", "method.size=[64,64]"],
}


@pytest.fixture
def program(run):
    """Run a program in this process; return what it printed, or its error."""

    def call(module, *arguments):
        torch.manual_seed(0)  # of weights, which no file has
        return run(module, *arguments, "trainer.accelerator=cpu")[1]

    return call


@pytest.mark.parametrize("method", METHODS)
def test_labels_scores_and_a_second_stage(method, program, tmp_path):
    small = [f"method={method}", *METHODS[method], *SCENES]
    out = tmp_path / "labels"
    command = [*small, f"out={out}", f"hydra.run.dir={tmp_path}/run"]
    assert "images a second" in program(pseudo_labels, *command)
    labels = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
    assert {value for label in labels for value in np.unique(label)} <= {0, 1, 2, 3}
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["source"], manifest["background"]) == ("static", None)
    assert "checkpoint_sha256" not in manifest
    first = sorted(out.glob("*.png"))[0]
    before = first.read_bytes()
    first.unlink()
    assert "4 PNGs, 3 of them from before" in program(pseudo_labels, *command)
    assert first.read_bytes() == before

    printed = program(evaluate, *small, f"hydra.run.dir={tmp_path}/scores")
    assert "report    " in printed, printed
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["checkpoint"] == f"method={method}"
    assert 0 < scores["val/miou_static"] <= 100
    assert (tmp_path / "scores" / "report.html").is_file()
    assert ("is not trained" in printed) == (method == "excel")

    tiny = ["backbone.variant=tiny", "backbone.strides=[4,2,1,1]", "backbone.pretrained=null"]
    program(train, "+experiment=second_stage", *tiny, *SCENES, f"labels={out}", "trainer.max_steps=1",
            "data.batch_size=2", "method.decoder_dim=8", "callbacks.pictures.num_images=0",
            f"hydra.run.dir={tmp_path}/second")  # fmt: skip
    assert (tmp_path / "second" / "checkpoints" / "last.ckpt").is_file()


def test_mistakes_are_named_in_one_line(program, tmp_path):
    common = [*SCENES, f"out={tmp_path}/labels", f"hydra.run.dir={tmp_path}/run"]
    assert "give ckpt=FILE, or a method that needs no training" in program(pseudo_labels, *common)
    toco = ["method=toco", "backbone.pretrained=null", "backbone.name=vit_tiny_patch16_224"]
    assert "ToCo has no labels before it is trained" in program(pseudo_labels, *toco, *common)
    both = [*METHODS["excel"], "method=excel", "ckpt=gone.ckpt"]
    assert "has its method with it: leave method=… out" in program(pseudo_labels, *both, *common)
    excel = ["method=excel", *METHODS["excel"]]
    swept = program(pseudo_labels, *excel, *common, "split=val", "sweep_thresholds=true")
    assert "source=static has no background score to vary" in swept
    given = program(pseudo_labels, *excel, *common, "background=0.4")
    assert "background=0.4: source=static has no background score; leave it out" in given
    gone = program(pseudo_labels, *excel, *common, "method.texts.pretrained=gone.safetensors")
    assert "method.texts.pretrained: gone.safetensors: no such file" in gone
