"""MoRe's losses of class tokens and patches against the sums of their equations, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from wsss_afa.losses.localization import certain_region_loss, class_separation, uncertain_region_loss

TAGS = torch.tensor([[1.0, 0, 1], [0, 0, 0]])


@pytest.fixture
def tokens():
    """Class tokens and a map of patches of two images, of whose three classes the second has none."""
    torch.manual_seed(0)
    return torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 5, 3, 4, requires_grad=True)


@pytest.fixture
def label():
    torch.manual_seed(1)
    return torch.tensor([0, 1, 3, 255])[torch.randint(0, 4, (2, 3, 4))] * torch.tensor([1, 0])[:, None, None]


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


def slow_certain(classes, patches, label, temperature):
    total = 0.0
    for tokens, grid, known in zip(classes, patches.flatten(2).mT, label.flatten(1), strict=True):
        for c, token in enumerate(tokens):
            a = [float(token @ patch / token.norm()) / temperature for patch in grid]
            own = [i for i in range(len(grid)) if known[i] == c + 1]
            rest = sum(map(math.exp, a)) + 1e-4
            total += sum(-math.log(math.exp(a[i]) / rest) for i in own) / (len(own) + 1e-4)
    return total / len(classes)


def slow_uncertain(classes, patches, tags, chosen):
    values = []
    for tokens, grid, own, drawn in zip(classes, patches.flatten(2).mT, tags, chosen.tolist(), strict=True):
        for i in (i for i in drawn if i >= 0):
            s = [abs(cosine(grid[i], token)) for token in tokens]
            near = sum(v for v, y in zip(s, own, strict=True) if y) / (float(own.sum()) + 1)
            far = sum(v for v, y in zip(s, own, strict=True) if not y) / (float((1 - own).sum()) + 1)
            values.append(0.5 * (1 - near) + 0.5 * far)
    return sum(values) / len(values)


def test_class_separation_equals_the_loop(tokens):
    classes = tokens[0].detach()
    rows = []
    for image in classes:
        for c, token in enumerate(image):
            logits = [cosine(token, other) / 0.07 for other in image]
            rows.append(-math.log(math.exp(logits[c]) / sum(map(math.exp, logits))))
    assert class_separation(classes).item() == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_class_separation_of_equal_tokens_is_the_logarithm_of_their_number():
    tokens = torch.ones(2, 20, 4, requires_grad=True)
    loss = class_separation(tokens)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(20))
    assert tokens.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_certain_regions_equal_the_loop(tokens, label, temperature):
    classes, patches = tokens
    loss = certain_region_loss(classes, patches, label, temperature)
    expected = slow_certain(classes.detach(), patches.detach(), label, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert patches.grad is None
    assert classes.grad[0].abs().sum() > 0


def test_uncertain_regions_equal_the_loop(tokens):
    classes, patches = tokens
    chosen = torch.tensor([[3, 11, -1], [0, -1, -1]])
    loss = uncertain_region_loss(classes, patches, TAGS, chosen)
    expected = slow_uncertain(classes.detach(), patches.detach(), TAGS, chosen)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert classes.grad is None
    touched = patches.grad.abs().sum(1).flatten(1).nonzero().tolist()
    assert touched == [[0, 3], [0, 11], [1, 0]]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_of_nothing_are_finite(tokens, precision, scale):
    """No certain token, no uncertain one, and tokens whose exponentials overflow."""
    classes, patches = (scale * each.to(precision) for each in tokens)
    ignored = torch.full((2, 3, 4), 255)
    every = torch.ones(2, 3, 4, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        terms = [
            class_separation(classes),
            certain_region_loss(classes, patches, ignored, 0.1),
            certain_region_loss(classes, patches, every, 0.1),
            uncertain_region_loss(classes, patches, TAGS, torch.full((2, 8), -1)),
        ]
    sum(terms).backward()
    assert all(term.isfinite() for term in terms)
    assert terms[1] == terms[3] == 0
    assert all(each.grad.isfinite().all() for each in tokens)


def test_a_token_of_zeros_has_a_gradient():
    classes, patches = torch.zeros(1, 2, 3, requires_grad=True), torch.zeros(1, 3, 1, 2, requires_grad=True)
    label, chosen = torch.ones(1, 1, 2, dtype=torch.long), torch.tensor([[0]])
    loss = certain_region_loss(classes, patches, label) + class_separation(classes)
    loss = loss + uncertain_region_loss(classes, patches, torch.ones(1, 2), chosen)
    loss.backward()
    assert F.relu(loss).isfinite()
    assert classes.grad.isfinite().all()
    assert patches.grad.isfinite().all()
