"""The base of all methods, by a toy that is trained for three steps: phases, sums, logs, idle parameters."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from quiet import QUIET
from wsss_afa.errors import UserError
from wsss_afa.inference.label_source import LabelSource
from wsss_afa.losses.classification import ClassificationLoss
from wsss_afa.methods.base import Method
from wsss_afa.methods.optim import AdamWPoly
from wsss_afa.ops.metrics import titles
from wsss_afa.types import MEAN, STD, Batch

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:You defined a `validation_step`")]


class Dots(nn.Conv2d):
    """The least backbone."""

    reductions, min_side, mean, std, any_size = (1,), 1, MEAN, STD, True


class Net(nn.Module):
    """Backbone, classifier and decoder of a weight each, or so."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Dots(3, 4, 1)
        self.classifier = nn.Linear(4, 2)
        self.decoder = nn.Conv2d(4, 3, 1)

    def classify(self, image: Tensor) -> Tensor:
        return self.classifier(self.backbone(image).mean((2, 3)))

    def segment(self, image: Tensor) -> Tensor:
        return self.decoder(self.backbone(image))


class Toy(Method):
    """Learns nothing of use; from step 2 on its decoder learns, too."""

    def __init__(self, **changes: Any) -> None:
        settings = {"phases": {"late": 2, "early": 0}, "weights": {"cls": 1.0, "seg": 0.25}} | changes
        super().__init__(Net(), 2, **settings)
        self.optim = AdamWPoly(max_steps=10, lr=0.1, warmup_steps=0)
        self.seen: list[dict[str, float]] = []
        self.gradients: list[list[Tensor | None]] = []

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        terms = {"cls": self.classify(batch["image"]).square().mean()}
        if self.phase(step) == "late":
            terms["seg"] = self.segment(batch["image"]).square().mean()
        self.seen.append({name: term.item() for name, term in terms.items()})
        return terms

    def on_after_backward(self) -> None:
        self.gradients.append([p.grad if p.grad is None else p.grad.clone() for p in self.parameters()])


class Record(Logger):
    """Keeps what is logged."""

    name, version = "record", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        pass


def trained(steps: int = 3, every: int = 1) -> tuple[Toy, Record, L.Trainer]:
    torch.manual_seed(0)
    method, record = Toy(), Record()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, log_every_n_steps=every, logger=record, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(method, DataLoader([{"image": torch.randn(3, 4, 5)} for _ in range(2 * steps)], batch_size=2))
    return method, record, trainer


@pytest.fixture(scope="module")
def run() -> tuple[Toy, Record, L.Trainer]:
    return trained()


# Phases


@pytest.mark.parametrize(
    ("step", "name"), [(0, "one"), (4, "one"), (5, "two"), (6, "two"), (7, "three"), (10**9, "three")]
)
def test_a_phase_begins_with_its_first_step(step, name):
    assert Toy(phases={"three": 7, "one": 0, "two": 5}).phase(step) == name


def test_phases_are_in_their_order_in_time():
    phases = Toy(phases={"three": 7, "one": 0, "two": 5}).phases
    assert [tuple(phase) for phase in phases] == [("one", 0), ("two", 5), ("three", 7)]


def test_of_phases_that_begin_together_the_last_counts():
    method = Toy(phases={"one": 0, "two": 5, "three": 5})
    assert [method.phase(step) for step in (4, 5)] == ["one", "three"]
    assert Toy(phases={"one": 0, "two": 0}).phase(0) == "two"


@pytest.mark.parametrize("phases", [{}, {"one": 1}, {"one": -1, "two": 5}])
def test_one_phase_begins_at_step_0(phases):
    with pytest.raises(UserError, match=r"method\.phases=.*: one phase has to begin at step 0") as error:
        Toy(phases=phases)
    assert "\n" not in str(error.value)


BY_PHASE = {
    "phases": {"one": 0, "two": 5, "three": 7},
    "weights": {"cls": 2.0, "seg": {"two": 0.5, "three": 1}},
}


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (4, 0.0), (5, 0.5), (6, 0.5), (7, 1.0), (99, 1.0)])
def test_a_weight_by_phase_is_that_of_the_newest_phase_that_it_names(step, weight):
    method = Toy(**BY_PHASE)
    assert method.weight("seg", step) == weight
    assert (method.weight("cls", step), method.weight("aff", step)) == (2.0, 0.0)
    total = method.total({"cls": torch.tensor(1.0), "seg": torch.tensor(3.0)}, step)
    assert total.item() == 2 + 3 * weight


@pytest.mark.parametrize(("step", "value"), [(0, None), (5, "a"), (8, "a")])
def test_a_setting_by_phase_has_no_value_before_the_first(step, value):
    method = Toy(**BY_PHASE)
    assert method.at({"two": "a"}, step) == value
    assert method.at("b", step) == "b"


def test_a_weight_of_a_phase_that_is_none_is_named():
    with pytest.raises(UserError, match=r"method\.weights\.seg names the phase late, need one of one"):
        Toy(phases={"one": 0}, weights={"seg": {"late": 1.0}})


# A step


def test_the_loss_is_the_weighted_sum_and_terms_are_logged_unweighted(run):
    method, record, _ = run
    rows = [row for row in record.rows if "train/loss" in row]
    assert [set(terms) for terms in method.seen] == [{"cls"}, {"cls"}, {"cls", "seg"}]
    for row, terms in zip(rows, method.seen, strict=True):
        logged = {name.removeprefix("train/loss_"): v for name, v in row.items() if "loss_" in name}
        assert logged == pytest.approx(terms)
        assert row["train/loss"] == pytest.approx(terms["cls"] + 0.25 * terms.get("seg", 0.0))


def test_rates_of_all_groups_are_logged(run):
    _, record, _ = run
    rates = {name: value for row in record.rows[:1] for name, value in row.items() if name.startswith("lr/")}
    assert rates == pytest.approx({"lr/encoder": 0.1, "lr/norm": 0.0, "lr/head": 1.0, "lr/decoder": 1.0})


def test_parameters_that_a_phase_leaves_out_have_a_gradient_of_zero(run):
    method, _, trainer = run
    names = [name for name, _ in method.named_parameters()]
    for step, gradients in enumerate(method.gradients):
        for name, gradient in zip(names, gradients, strict=True):
            assert gradient is not None, f"{name} in step {step}"
            assert gradient.any() == (step == 2 or "decoder" not in name), f"{name} in step {step}"
    counted = [state["step"].item() for state in trainer.optimizers[0].state.values()]
    assert counted == [3.0] * len(names)  # AdamW's


def test_idle_is_zero_whatever_the_weights():
    method = Toy()
    nn.init.constant_(method.net.decoder.weight, 1e6)
    idle = method._idle()
    idle.backward()
    assert idle.item() == 0
    heads = [*method.net.decoder.parameters(), *method.net.classifier.parameters()]
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in heads)


def test_frozen_parameters_are_no_groups():
    method = Toy()
    method.net.decoder.bias.requires_grad_(False)
    kinds = method.parameter_kinds()
    assert [len(kinds[name]) for name in ("encoder", "norm", "head", "decoder")] == [2, 0, 2, 1]
    method._idle().backward()
    assert method.net.decoder.bias.grad is None


# The rest


def test_steps_are_logged_every_so_often():
    method, record, _ = trained(steps=4, every=2)
    assert len(method.seen) == 4
    assert [row["train/loss"] for row in record.rows if "train/loss" in row] == pytest.approx(
        [sum(w * method.seen[i].get(n, 0.0) for n, w in method.weights.items()) for i in (1, 3)]
    )


def test_without_a_trainer_nothing_is_logged():
    assert not Toy().is_logged()


def test_backbone_and_decoder_are_compiled_and_no_more(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)  # which is quick
    method = Toy()
    names = list(method.state_dict())
    method.compile_network()
    compiled = [name for name, part in method.named_modules() if part._compiled_call_impl is not None]
    assert compiled == ["net.backbone", "net.decoder"]
    assert list(method.state_dict()) == names
    del method.net.decoder
    method.compile_network()


def test_training_tags_reach_the_losses_that_weigh_classes():
    method = Toy()
    method.classification = ClassificationLoss(positive_weight="balanced")
    method.use_tags(torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]]))
    assert method.classification.positive_weight.tolist() == pytest.approx([1 / 3, 3])


def test_what_a_method_does_not_have_is_said_so():
    method = Toy()
    assert (method.sources, method.scored, method.needs_labels) == ((), (), False)
    with pytest.raises(UserError, match="Toy has no source cam: override maps"):
        method.maps({}, "cam", [0.5])
    assert method.interpret({}).layers == {}
    assert (method.mean, method.std) == (MEAN, STD)


def test_what_a_method_leaves_out_is_named():
    toy = Toy(weights={"seg": 1.0})
    toy.losses = lambda batch, step: {"cls": torch.zeros(())}
    with pytest.raises(UserError, match=r"the loss cls has no weight: set method\.weights\.cls=1"):
        toy.training_step({}, 0)
    with pytest.raises(UserError, match="Toy has no activation maps: set cams=false"):
        toy.heat_maps(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UserError, match="background=None: need a number"):
        LabelSource(ToyWithMaps(), "cam", toy.protocol).backgrounds(None)


class ToyWithMaps(Toy):
    """Has labels of activation maps, and no background scores of its own."""

    sources = ("cam",)


def test_own_sources_have_titles():
    """A source that only its method knows stands before those that all know."""
    assert list(titles(["seg", "walk", "cam"]).items()) == [
        ("walk", "walk"), ("cam", "CAM"), ("seg", "segmentation"),
    ]  # fmt: skip


def test_the_segmentation_is_trained_from_its_first_weight_on():
    assert Toy().segmentation_step == 0
    assert Toy(weights={"cls": 1.0, "seg": {"late": 0.25}}).segmentation_step == 2
