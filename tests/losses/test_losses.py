"""Losses against loops over pixels and pairs, and what they do where nothing is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss
from torch import Tensor
from torch.autograd import gradcheck
from wsss_afa.methods.afa.loss import AFALoss

import reference
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.classification import classification_loss
from wsss_afa.losses.dense_energy import DenseEnergyLoss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.types import Activation, AFAOutput, AffinityTokens, Batch, PseudoLabels


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_label(*shape: int) -> Tensor:
    label = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(3))
    return label.where(label < 3, 255)


# The losses compute in float32 whatever they are given, so that differences are taken in wide steps.
WIDE = {"eps": 1e-2, "atol": 1e-3, "rtol": 1e-2}


# Classification


def test_classification_equals_scikit_learn():
    logits, tags = randn(5, 3), (randn(5, 3, seed=1) > 0).float()
    each = [log_loss(tags[:, c], logits[:, c].sigmoid(), labels=[0, 1]) for c in range(3)]
    assert classification_loss(logits, tags).item() == pytest.approx(sum(each) / 3, rel=1e-5)


def test_classification_gradient():
    tags = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert gradcheck(lambda x: classification_loss(x, tags), (randn(2, 3).requires_grad_(),), **WIDE)


# Segmentation


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (7, 9)])
def test_segmentation_values(size):
    logits, label = randn(2, 3, 4, 5), random_label(2, *size)
    expected = reference.balanced_cross_entropy(logits, label)
    assert balanced_cross_entropy(logits, label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_segmentation_gradient():
    logits, label = randn(1, 3, 2, 3).requires_grad_(), random_label(1, 4, 6)
    assert gradcheck(lambda x: balanced_cross_entropy(x, label), (logits,), **WIDE)
    (ours,) = torch.autograd.grad(balanced_cross_entropy(logits, label), logits)
    (theirs,) = torch.autograd.grad(reference.balanced_cross_entropy(logits, label), logits)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_both_halves_weigh_the_same():
    logits = torch.zeros(1, 2, 1, 5)
    logits[:, 0] = 1.0  # leans to the background
    label = torch.tensor([[[0, 0, 0, 0, 1]]])
    few, many = torch.tensor([0, 1]), torch.tensor([0, 0, 0, 0, 1])
    expected = F.cross_entropy(logits[0, :, 0, :2].T, few)
    assert balanced_cross_entropy(logits, label).item() == pytest.approx(expected.item())
    assert F.cross_entropy(logits[0, :, 0].T, many).item() != pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("known", [0, 2])
def test_an_absent_half_is_zero(known):
    logits, label = randn(2, 3, 4, 4).float().requires_grad_(), torch.full((2, 4, 4), 255)
    label[0, :2] = known
    loss = balanced_cross_entropy(logits, label)
    expected = F.cross_entropy(logits[0, :, :2].flatten(1).T, torch.full((8,), known)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, :, :2].count_nonzero() == 24
    assert logits.grad.count_nonzero() == 24


def test_all_ignored_is_zero_without_gradient():
    logits = (randn(2, 3, 4, 4).float() * 1e4).requires_grad_()
    loss = balanced_cross_entropy(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# Affinity


def random_pairs() -> tuple[Tensor, Tensor]:
    label = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(5))
    return randn(2, 6, 6).sigmoid(), label.where(label < 2, 255)


def test_affinity_values_and_gradient():
    affinity, label = random_pairs()
    affinity.requires_grad_()
    loss = affinity_loss(affinity, label)
    assert loss.item() == pytest.approx(reference.affinity_loss(affinity, label).item(), rel=1e-12)
    assert gradcheck(lambda a: affinity_loss(a, label), (affinity,))


def test_perfect_affinity_costs_nothing():
    _, label = random_pairs()
    assert affinity_loss((label == 1).double(), label).item() == 0
    assert affinity_loss((label == 0).double(), label).item() > 0.9  # N / (N + 1)


@pytest.mark.parametrize("only", [0, 1])
def test_absent_pairs_cost_nothing(only):
    affinity, label = random_pairs()
    label = label.where(label == only, 255)
    value = (affinity if only == 0 else 1 - affinity)[label == only]
    expected = value.sum() / (len(value) + 1) / 2
    assert affinity_loss(affinity, label).item() == pytest.approx(expected.item())


def test_affinity_all_ignored_is_zero_without_gradient():
    affinity, label = random_pairs()
    loss = affinity_loss(affinity.requires_grad_(), torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(affinity.grad, torch.zeros_like(affinity))


# Dense energy

SIZE = (8, 12)
BOXES = torch.tensor([[0, 8, 0, 12], [2, 8, 0, 6]])


@pytest.fixture
def energy_input() -> tuple[Tensor, Tensor, Tensor]:
    """Logits at a quarter, colours and label of two images."""
    rgb = randn(2, 3, *SIZE, seed=1).mul(0.05).add(0.5).clamp(0, 1)
    return 2 * randn(2, 3, 2, 3), rgb, random_label(2, *SIZE)


def reference_energy(logits: Tensor, rgb: Tensor, label: Tensor, box: Tensor) -> tuple[float, Tensor]:
    """Mean energy and its gradient in the logits, image by image."""
    half = (SIZE[0] // 2, SIZE[1] // 2)
    values, gradients = [], []
    for one, colours, target, (top, bottom, left, right) in zip(
        logits, rgb, label, box.tolist(), strict=True
    ):
        one = one.clone().requires_grad_()
        probability = reference.resize(reference.resize(one, SIZE).softmax(0), half)
        inside = torch.zeros(SIZE)
        inside[top:bottom, left:right] = 1
        energy, gradient = reference.dense_energy(
            probability.detach(),
            255 * colours[:, ::2, ::2],  # the nearest pixel of an exact half
            inside[::2, ::2],
            target[::2, ::2] == 255,
            sigma_position=50.0,
            sigma_color=15.0,
        )
        probability.backward(gradient)
        values.append(energy)
        gradients.append(one.grad)
    return sum(values) / len(values), torch.stack(gradients) / len(values)


@pytest.mark.parametrize("chunk", [1024, 5])
def test_energy_and_its_gradient(energy_input, chunk):
    logits, rgb, label = energy_input
    logits.requires_grad_()
    loss = DenseEnergyLoss(weight=1.0, chunk=chunk)(logits, rgb, label, BOXES)
    energy, gradient = reference_energy(logits.detach(), rgb, label, BOXES)
    assert energy < -1
    assert loss.item() == pytest.approx(energy, rel=1e-4)
    loss.backward()
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-3, atol=1e-4)


def test_energy_is_scaled_by_its_weight(energy_input):
    logits, rgb, label = energy_input
    full = DenseEnergyLoss(weight=1.0)(logits, rgb, label, BOXES)
    assert DenseEnergyLoss()(logits, rgb, label, BOXES).item() == pytest.approx(1e-7 * full.item(), rel=1e-5)


def test_energy_gradient_where_the_gate_is_constant(energy_input):
    logits, rgb, label = energy_input
    unknown, loss = torch.full_like(label, 255), DenseEnergyLoss(weight=1.0)
    assert gradcheck(
        lambda x: loss(x, rgb, unknown, BOXES), (logits.requires_grad_(),), eps=1e-2, atol=5e-3, rtol=1e-2
    )


def test_energy_prefers_one_class_for_one_colour():
    label, box = torch.full((1, *SIZE), 255), torch.tensor([[0, 8, 0, 12]])
    rgb = torch.full((1, 3, *SIZE), 0.5)
    alike = torch.zeros(1, 2, *SIZE)
    alike[:, 0] = 8.0
    torn = alike.clone()
    torn[..., ::4] *= -1
    loss = DenseEnergyLoss()
    assert loss(alike, rgb, label, box) < loss(torn, rgb, label, box) < 0


def test_energy_knows_nothing_outside_the_box(energy_input):
    logits, rgb, label = energy_input
    other = rgb.clone()
    other[1, :, :2], other[1, :, :, 6:] = 0.9, 0.1
    loss = DenseEnergyLoss(weight=1.0)
    assert loss(logits, rgb, label, BOXES).item() == pytest.approx(loss(logits, other, label, BOXES).item())


def test_energy_of_sure_pixels_is_zero():
    logits = torch.zeros(1, 2, *SIZE)
    logits[:, 0] = 100.0
    logits.requires_grad_()
    loss = DenseEnergyLoss()(
        logits, torch.full((1, 3, *SIZE), 0.5), torch.zeros(1, *SIZE, dtype=torch.long), BOXES[:1]
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# Sum


@pytest.fixture
def step() -> tuple[AFAOutput, Batch]:
    pairs, _ = random_pairs()
    activation = Activation(torch.zeros(2, 2, 1, 1), AffinityTokens([], [], (1, 1)))
    output = AFAOutput(randn(2, 2).float(), randn(2, 3, 2, 3).float(), pairs.float(), activation)
    batch: Batch = {
        "image": torch.zeros(2, 3, *SIZE),
        "class_label": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "valid_box": BOXES,
        "name": ["a", "b"],
    }
    return output, batch


def test_terms_of_a_full_step(step, energy_input):
    output, batch = step
    label, pairs = energy_input[2], random_pairs()[1]
    rgb = energy_input[1].float()
    energy = DenseEnergyLoss(weight=1.0)
    terms = AFALoss(dense_energy=energy)(output, batch, PseudoLabels(label, pairs), rgb)
    expected = {
        "cls": classification_loss(output.class_logits, batch["class_label"]),
        "seg": balanced_cross_entropy(output.seg_logits, label),
        "reg": energy(output.seg_logits, rgb, label, BOXES),
        "aff": affinity_loss(output.affinity, pairs),
    }
    assert {name: terms[name].item() for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )
    weighted = expected["cls"] + 0.1 * expected["seg"] + 0.1 * expected["aff"] + 0.01 * expected["reg"]
    assert terms["total"].item() == pytest.approx(weighted.item())


@pytest.mark.parametrize(
    ("with_segmentation", "with_affinity", "names"),
    [(False, False, {"cls"}), (True, False, {"cls", "seg"}), (True, True, {"cls", "seg", "aff"})],
)
def test_a_part_without_label_has_no_term(step, with_segmentation, with_affinity, names):
    labels = PseudoLabels(
        random_label(2, *SIZE) if with_segmentation else None, random_pairs()[1] if with_affinity else None
    )
    assert AFALoss()(*step, labels).keys() == names | {"total"}


def test_all_ignored_leaves_the_classification(step):
    output, batch = step
    output = output._replace(seg_logits=output.seg_logits.requires_grad_())
    labels = PseudoLabels(torch.full((2, *SIZE), 255), torch.full((2, 6, 6), 255))
    terms = AFALoss()(output, batch, labels)
    assert terms["total"].item() == terms["cls"].item()
    terms["total"].backward()
    assert torch.equal(output.seg_logits.grad, torch.zeros_like(output.seg_logits))


def test_weights_have_no_misspelt_names():
    with pytest.raises(TypeError):
        AFALoss(segmentation_weight=0.2)
