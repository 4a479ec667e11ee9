"""Affinity losses against loops over pairs and scikit-learn, and what they do where nothing is known."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor
from torch.autograd import gradcheck

import reference
from wsss_afa.losses.affinity import AffinityLoss, affinity_cross_entropy, affinity_loss


def random_pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    label = torch.randint(0, 3, (2, 6, 6), generator=generator)
    return torch.randn(2, 6, 6, dtype=torch.float64, generator=generator).sigmoid(), label.where(
        label < 2, 255
    )


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


# Cross-entropy in place of the linear loss


def test_cross_entropy_is_scikit_learns_of_each_kind_of_pairs():
    affinity, label = random_pairs()
    logits, expected = 3 * affinity.logit(), 0.0
    for kind in (0, 1):
        truth, answer = [kind] * int((label == kind).sum()), logits[label == kind].sigmoid().numpy()
        expected += log_loss(truth, answer, labels=[0, 1], normalize=False) / (len(truth) + 1) / 2
    assert affinity_cross_entropy(logits, label).item() == pytest.approx(expected)
    assert gradcheck(lambda z: affinity_cross_entropy(z, label), (logits.requires_grad_(),))


@pytest.mark.parametrize(("kind", "wrong"), [(0, 1.0), (1, -1.0)])
def test_quite_wrong_pairs_teach_most_where_the_linear_loss_teaches_nothing(kind, wrong):
    logits = wrong * torch.tensor([[[-200.0, -2.0, 0.0, 2.0, 200.0]]])
    label = torch.full_like(logits, kind, dtype=torch.long)

    def gradient(loss):
        leaf = logits.clone().requires_grad_()
        loss(leaf).backward()
        return wrong * leaf.grad.flatten() * 6 * 2  # (N + 1), and each kind counts half

    linear = gradient(lambda z: affinity_loss(z.sigmoid(), label))
    entropy = gradient(lambda z: affinity_cross_entropy(z, label))
    slope = (logits.sigmoid() * (1 - logits.sigmoid())).flatten()
    torch.testing.assert_close(linear, slope)
    torch.testing.assert_close(entropy, (wrong * logits).sigmoid().flatten())
    assert linear[4] == 0
    assert entropy[4] == 1


def test_ignored_pairs_cost_nothing():
    affinity, label = random_pairs()
    logits = affinity.logit()
    loss = affinity_cross_entropy(logits.requires_grad_(), torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("chosen", [False, True])
def test_the_setting_chooses_the_loss(chosen):
    affinity, label = random_pairs()
    logits = affinity.logit()
    expected = affinity_cross_entropy(logits, label) if chosen else affinity_loss(affinity, label)
    assert AffinityLoss(cross_entropy=chosen)(logits, label).item() == pytest.approx(expected.item())
