"""Training on labels that are given: a network learns them, and is rebuilt from its file."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch

from quiet import QUIET
from wsss_afa import train
from wsss_afa.data.synthetic import SyntheticScenes
from wsss_afa.errors import UserError
from wsss_afa.inference.predictor import Predictor
from wsss_afa.losses.segmentation import pixel_cross_entropy
from wsss_afa.methods.optim import parameter_kinds
from wsss_afa.methods.recipe import load
from wsss_afa.methods.supervised import SegmentationNet, Supervised
from wsss_afa.models.backbones.mix_transformer import mix_transformer
from wsss_afa.models.backbones.timm_pyramid import TimmPyramid
from wsss_afa.reports.visualize import save_label

pytestmark = QUIET


@pytest.fixture(scope="module")
def method() -> Supervised:
    torch.manual_seed(0)
    backbone = mix_transformer("tiny", drop_path_rate=0.0)
    return Supervised(backbone, 2, {"segmentation": 0}, {"seg": 1.0}, decoder_dim=8).eval()


def test_every_parameter_has_one_kind():
    net = SegmentationNet(TimmPyramid("resnet10t", pretrained=None), 3, decoder_dim=8)
    kinds = parameter_kinds(net)
    listed = [id(parameter) for kind in kinds.values() for parameter in kind]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in net.parameters()}
    assert not kinds["head"]


def test_the_loss_is_that_of_the_labels(method):
    batch = {"image": torch.randn(2, 3, 32, 40), "mask": torch.randint(0, 3, (2, 32, 40))}
    batch["mask"][:, :5] = 255
    terms = method.losses(batch, 0)
    assert terms.keys() == {"seg"}
    assert torch.equal(terms["seg"], pixel_cross_entropy(method.segment(batch["image"]), batch["mask"]))
    assert method.needs_labels
    del batch["mask"]
    with pytest.raises(UserError, match=r"no labels to learn from: name their folder, labels=DIR"):
        method.losses(batch, 0)


def test_a_class_is_scored_by_its_lead_over_the_background(method):
    """In its clearest pixel; its activation map is that lead everywhere."""
    image = torch.randn(1, 3, 32, 40)
    logits = method.segment(image)[0]
    for c in range(2):
        lead = logits[c + 1] - logits[0]
        torch.testing.assert_close(method.classify(image)[0, c], lead.max())
        torch.testing.assert_close(method.net.activate(image).cam[0, c], lead)


def write_truth(folder, count=8, size=32):
    """Labels without a mistake, for the training scenes."""
    for scene in SyntheticScenes(count, size, 3, with_mask=True):
        save_label(scene["mask"], folder / f"{scene['name']}.png")
    return folder


SMALL = [
    "+experiment=second_stage",
    "data.image_size=32",
    "data.num_classes=3",
    "data.train_images=8",
    "data.val_images=4",
    "data.batch_size=4",
    "method.decoder_dim=16",
    "backbone.pretrained=null",
    "optim.lr=1e-3",
    "optim.warmup_steps=2",
    "trainer.max_steps=24",
    "trainer.val_check_interval=24",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.pictures.num_images=2",
]
NETWORKS = {
    "mit": ["backbone.variant=tiny", "backbone.strides=[4,2,1,1]"],
    "timm": ["backbone=timm_pyramid", "backbone.name=resnet10t"],
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_learns_its_labels_and_is_rebuilt_from_its_file(network, run, tmp_path):
    labels = write_truth(tmp_path / "labels")
    folder = tmp_path / "run"
    arguments = [*SMALL, *NETWORKS[network], f"labels={labels}", f"hydra.run.dir={folder}"]
    assert run(train, *arguments)[0] == 0
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss_seg"]) for row in csv.DictReader(file) if row["train/loss_seg"]]
    assert len(losses) == 24
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    results = json.loads((folder / "metrics.json").read_text())
    assert set(results["last"]["iou"]) == {"seg"}
    assert (folder / "pictures" / "step_000024.png").is_file()
    method = load(folder / "checkpoints" / "best.ckpt").eval()
    assert isinstance(method, Supervised)
    assert method.recipe["class_names"] == ["disc", "box", "triangle"]
    image = torch.randn(1, 3, 45, 38)
    with torch.no_grad():
        found = method.evaluate({"image": image})
        assert torch.equal(found.seg_logits, method.segment(image))
        assert torch.equal(found.class_logits, method.classify(image))
    prediction = Predictor.from_checkpoint(folder / "checkpoints" / "best.ckpt", "cpu")(
        np.zeros((45, 38, 3), np.uint8)
    )
    assert prediction.label.shape == (45, 38)


MISTAKES = {
    "no labels": ([*SMALL, *NETWORKS["mit"]], r"labels=DIR"),
    "no second stage": (
        ["+experiment=synthetic", "data.train_images=8", "data.val_images=4", "labels=."],
        r"labels=\.: .*second_stage",
    ),
    "missing folder": ([*SMALL, *NETWORKS["mit"], "labels=nowhere"], r"labels=nowhere: no such folder"),
    "unknown backbone": (
        [*SMALL, "backbone=timm_pyramid", "backbone.name=resnet5o", "labels=."],
        r"resnet5o",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line(mistake, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, pattern = MISTAKES[mistake]
    _, message = run(train, *arguments, f"hydra.run.dir={tmp_path}/run")
    assert re.fullmatch(rf"error: .*{pattern}.*", message), message
    assert not list(tmp_path.rglob("*.ckpt"))
