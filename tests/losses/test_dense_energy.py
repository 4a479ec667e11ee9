"""The dense energy and its gradient against a loop over pairs of pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

import reference
from wsss_afa.errors import UserError
from wsss_afa.losses.dense_energy import DenseEnergyLoss


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_label(*shape: int) -> Tensor:
    label = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(3))
    return label.where(label < 3, 255)


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


@pytest.mark.parametrize("chunk", [None, 1024, 5])
def test_energy_and_its_gradient(energy_input, chunk):
    logits, rgb, label = energy_input
    logits.requires_grad_()
    loss = DenseEnergyLoss(weight=1.0, chunk=chunk)(logits, rgb, label, BOXES)
    energy, gradient = reference_energy(logits.detach(), rgb, label, BOXES)
    assert energy < -1
    assert loss.item() == pytest.approx(energy, rel=1e-4)
    loss.backward()
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-3, atol=1e-4)


def test_lattice_approximates_the_energy_and_its_gradient():
    rgb = F.interpolate(randn(1, 3, 6, 6).mul(0.2).add(0.5), (64, 64), mode="bilinear").clamp(0, 1).float()
    logits, label = 2 * randn(1, 3, 16, 16).float(), random_label(1, 64, 64)
    made = {}
    for kernel in ("exact", "lattice"):
        given = logits.clone().requires_grad_()
        energy = DenseEnergyLoss(kernel=kernel)(given, rgb, label, torch.tensor([[4, 64, 0, 50]]))
        made[kernel] = energy.item(), torch.autograd.grad(energy, given)[0].flatten()
    assert 0.4 < made["lattice"][0] / made["exact"][0] < 0.8
    assert F.cosine_similarity(made["lattice"][1], made["exact"][1], dim=0) > 0.99


def test_unknown_kernel_is_refused():
    with pytest.raises(UserError, match="need exact or lattice"):
        DenseEnergyLoss(kernel="sparse")


def test_image_without_a_box_has_no_energy(energy_input):
    logits, rgb, label = energy_input
    assert DenseEnergyLoss()(logits, rgb, label, torch.zeros(2, 4, dtype=torch.long)) == 0


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
