"""Cross-entropy of pixels against loops, and what it does where nothing is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

import reference
from wsss_afa.losses.segmentation import balanced_cross_entropy, pixel_cross_entropy


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_label(*shape: int) -> Tensor:
    label = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(3))
    return label.where(label < 3, 255)


# The losses compute in float32 whatever they are given, so that differences are taken in wide steps.
WIDE = {"eps": 1e-2, "atol": 1e-3, "rtol": 1e-2}


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


# All labelled pixels alike


def test_pixel_cross_entropy_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.randint(0, 4, (2, 20, 28), generator=torch.Generator().manual_seed(1))
    label[:, :9] = 255
    full = F.interpolate(logits, (20, 28), mode="bilinear", align_corners=False)
    wanted = -full.log_softmax(1).gather(1, label[:, None].clamp(max=3))[:, 0][label != 255].mean()
    torch.testing.assert_close(pixel_cross_entropy(logits, label), wanted)
    empty = pixel_cross_entropy(logits, torch.full_like(label, 255))
    empty.backward()
    assert empty == 0
    assert not logits.grad.any()
