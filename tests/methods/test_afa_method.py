"""AFA's losses phase by phase, against the loss functions on the labels that its labeler makes."""

from __future__ import annotations

import pytest
import torch
from hydra.errors import InstantiationException

from recipes import small_recipe
from wsss_afa.errors import UserError
from wsss_afa.losses.affinity import affinity_cross_entropy, affinity_loss
from wsss_afa.losses.classification import classification_loss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.methods.afa.method import AFA
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.methods.recipe import build
from wsss_afa.models.backbones.timm_pyramid import TimmPyramid
from wsss_afa.ops.images import to_rgb
from wsss_afa.types import Batch

PHASES = ["method.phases.segmentation=5", "method.phases.propagation=9"]


def make_method(*overrides: str) -> AFA:
    """Without chance in its passes, so that each gives the same."""
    torch.manual_seed(0)
    method = build(small_recipe(*PHASES, "backbone.drop_path_rate=0", *overrides))
    assert isinstance(method, AFA)
    method.net.decoder.dropout.p = 0.0
    return method.train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "class_label": torch.tensor([[1.0, 0, 1], [0, 1, 0]]),
        "valid_box": torch.tensor([[0, 64, 0, 64], [8, 60, 0, 40]]),
        "name": ["a", "b"],
    }


NAMES = {
    "afa": [{"cls"}, {"cls", "seg", "aff"}, {"cls", "seg", "aff"}],
    "par": [{"cls"}, {"cls", "seg"}, {"cls", "seg"}],
    "cam": [{"cls"}, {"cls", "seg"}, {"cls", "seg"}],
}


@pytest.mark.parametrize("labels", NAMES)
def test_every_phase_has_its_terms(batch, labels):
    method = make_method(f"method.labels={labels}")
    names = [method.losses(batch, step).keys() for step in (4, 5, 9)]
    assert names == NAMES[labels]
    assert ("propagation" in [phase.name for phase in method.phases]) == (labels == "afa")
    assert ("affinity" in method.sources, "affinity" in method.scored) == (labels == "afa",) * 2


@pytest.mark.parametrize("cross_entropy", [False, True])
def test_terms_are_the_losses_of_the_labels(batch, cross_entropy):
    settings = [f"method.affinity.cross_entropy={cross_entropy}", "method.weights.reg=0.01"]
    method = make_method(*settings, "method.dense_energy.weight=1")
    for step in (5, 9):
        terms = method.losses(batch, step)
        output = method.net(batch["image"])
        labels = method.labeler(method.net, batch, output, propagating=step == 9)
        rgb = to_rgb(batch["image"], method.mean, method.std)
        pairs = (output.affinity_logits if cross_entropy else output.affinity, labels.affinity)
        expected = {
            "cls": classification_loss(output.class_logits, batch["class_label"]),
            "seg": balanced_cross_entropy(output.seg_logits, labels.segmentation),
            "reg": method.dense_energy(output.seg_logits, rgb, labels.segmentation, batch["valid_box"]),
            "aff": (affinity_cross_entropy if cross_entropy else affinity_loss)(*pairs),
        }
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(
            {name: value.item() for name, value in expected.items()}
        )
        assert terms["reg"] < 0


def test_before_segmentation_the_classifier_alone_learns(batch):
    method = make_method()
    terms = method.losses(batch, 4)
    assert terms["cls"].item() == pytest.approx(
        classification_loss(method.net.classify(batch["image"]), batch["class_label"]).item()
    )
    terms["cls"].backward()
    assert method.net.classifier.weight.grad.any()
    idle = (*method.net.decoder.parameters(), *method.net.affinity_head.parameters())
    assert all(parameter.grad is None for parameter in idle)
    assert method.net.decoder.norm.num_batches_tracked == 0


def test_dense_energy_of_weight_0_is_not_computed(batch, monkeypatch):
    method = make_method()
    monkeypatch.setattr(method.dense_energy, "forward", pytest.fail)
    assert "reg" not in method.losses(batch, 9)


def test_all_ignored_labels_leave_the_classification(batch):
    method = make_method()
    nothing: Batch = {**batch, "valid_box": torch.zeros(2, 4, dtype=torch.long)}
    terms = method.losses(nothing, 5)
    assert terms["cls"] > 0
    assert (terms["seg"], terms["aff"]) == (0, 0)
    terms["seg"].backward()
    assert not method.net.decoder.predict.weight.grad.any()


def test_affinity_needs_queries_and_keys():
    with pytest.raises(UserError, match=r"TimmPyramid hands on no queries and keys .*: use backbone=mit"):
        AFANet(TimmPyramid("resnet10t", pretrained=None), 3)


@pytest.mark.parametrize(
    "phases",
    [
        {"classification": 0, "segmentation": 3, "propagation": 1},
        {"classification": 0, "segmentation": 3},
        {"classification": 0, "segmentation": 3, "propagation": 5, "more": 7},
    ],
)
def test_phases_in_another_order_are_refused(phases):
    recipe = small_recipe()
    recipe["method"]["phases"] = phases
    with pytest.raises(InstantiationException) as refusal:
        build(recipe)
    assert isinstance(refusal.value.__cause__, UserError)
    assert "need classification ≤ segmentation ≤ propagation" in str(refusal.value.__cause__)
