"""Evaluation: exact scores, whatever the number of processes, under every protocol."""

from __future__ import annotations

import json
import subprocess
import sys

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import confusion_matrix, jaccard_score

from wsss_afa import evaluate
from wsss_afa.methods.recipe import RECIPE_KEY, Recipe, build
from wsss_afa.data.synthetic import SyntheticDataModule
from wsss_afa.methods.base import AFALightningModule
from wsss_afa.types import MEAN, STD

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*srun"),
]
SCENES = {"image_size": 48, "num_classes": 3, "val_images": 7, "train_images": 4}
BACKBONE = {
    "_target_": "wsss_afa.models.backbones.mix_transformer.mix_transformer",
    "variant": "tiny",
    "pretrained": None,
    "strides": [4, 2, 1, 1],
}
LABELER = {
    "_target_": "wsss_afa.methods.afa.pseudo_labels.PseudoLabeler",
    "cam": {"_target_": "wsss_afa.ops.cam.MultiScaleCAM", "scales": [1.0]},
    "refine": {"_target_": "wsss_afa.ops.par.PixelAdaptiveRefinement"},
    "propagate": {"_target_": "wsss_afa.ops.random_walk.RandomWalkPropagation", "radius": 2},
}


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        model={"_target_": "wsss_afa.methods.afa.network.AFANet", "decoder_dim": 16, "backbone": BACKBONE},
        pseudo_label=LABELER,
        class_names=["disc", "box", "triangle"],
        mean=list(MEAN),
        std=list(STD),
    )


@pytest.fixture(scope="module")
def checkpoint(recipe, tmp_path_factory):
    """A file of random weights that answers with more than one class."""
    torch.manual_seed(0)
    net, _ = build(recipe)
    torch.nn.init.normal_(net.decoder.predict.weight)
    torch.nn.init.normal_(net.classifier.weight)
    path = tmp_path_factory.mktemp("checkpoint") / "random.ckpt"
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, RECIPE_KEY: dict(recipe)}, path)
    return path


class Keep(Callback):
    """Every label and mask of a validation, pixel after pixel."""

    def __init__(self):
        self.labels, self.masks = {}, []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        for source, label in outputs.items():
            self.labels.setdefault(source, []).append(label.flatten().numpy())
        self.masks.append(batch["mask"].flatten().numpy())


def test_scores_are_those_of_scikit_learn_over_all_pixels(recipe):
    torch.manual_seed(0)
    net, labeler = build(recipe)
    torch.nn.init.normal_(net.decoder.predict.weight)
    module, keep = AFALightningModule(net, labeler, recipe), Keep()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[keep],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    data = SyntheticDataModule(**SCENES)
    trainer.validate(module, datamodule=data, verbose=False)
    truth = np.concatenate(keep.masks)
    assert set(keep.labels) == {"seg", "cam", "affinity"}
    for source, labels in keep.labels.items():
        label = np.concatenate(labels)[truth != 255]
        counted = truth[truth != 255]
        classes = np.unique(counted)
        assert len(np.unique(label)) > 1
        expected = jaccard_score(counted, label, labels=classes, average=None)
        computed = module.scores[source].compute()
        assert computed["miou"].item() == pytest.approx(expected.mean(), abs=1e-9)
        np.testing.assert_allclose(computed["iou"][classes].numpy(), expected, atol=1e-9)
        confusion = module.scores[source].confusion.numpy()
        np.testing.assert_array_equal(confusion, confusion_matrix(counted, label, labels=range(4)))


def arguments(checkpoint, folder, *more):
    scenes = [f"data.{key}={value}" for key, value in SCENES.items()]
    return [f"ckpt={checkpoint}", *scenes, "trainer.accelerator=cpu", f"hydra.run.dir={folder}", *more]


@pytest.mark.slow
def test_two_processes_score_as_one(run, checkpoint, tmp_path):
    """Seven images: one process has four of them, the other three."""
    alone, both = (
        arguments(checkpoint, tmp_path / n, f"trainer.devices={n}", "callbacks.pictures.num_images=0")
        for n in ("1", "2")
    )
    assert run(evaluate, *alone)[0] == 0
    command = [sys.executable, "-m", "wsss_afa.evaluate", *both]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (json.loads((tmp_path / str(n) / "metrics.json").read_text()) for n in (1, 2))
    assert one == two
    assert 0 < one["val/miou_seg"] < 100


@pytest.mark.parametrize("protocol", ["plain", "afa"])
def test_numbers_name_protocol_split_and_checkpoint(checkpoint, protocol, tmp_path, monkeypatch, capsys):
    more = [f"protocol={protocol}", "trainer.devices=1", "data.val_images=2"]
    more += ["protocol.long_side=64"] * (protocol == "afa")
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments(checkpoint, tmp_path, *more)])
    evaluate.main()
    scores = json.loads((tmp_path / "metrics.json").read_text())
    assert scores["checkpoint"] == str(checkpoint)
    assert scores["split"] == "val"
    assert scores["protocol"].startswith(f"{protocol} (")
    assert ("val/miou_crf" in scores) == (protocol == "afa")
    out = capsys.readouterr().out
    assert scores["protocol"] in out
    assert f"{checkpoint} on val" in out
