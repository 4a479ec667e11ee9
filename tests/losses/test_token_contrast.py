"""Patch token contrast and class token contrast against the sums of their equations, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.token_contrast import class_token_contrast, patch_token_contrast
from wsss_afa.ops.affinity import affinity_label, pair_label

PRECISIONS = (torch.float32, torch.bfloat16)


def slow_patch_contrast(tokens, label):
    same, different, near, far = 0, 0, 0.0, 0.0
    for image, pairs in zip(tokens, label, strict=True):
        rows = image.flatten(1).T
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                cosine = float(one @ other / (one.norm() * other.norm()))
                if pairs[i, j] == 1:
                    same, near = same + 1, near + abs(cosine)
                if pairs[i, j] == 0:
                    different, far = different + 1, far + abs(cosine)
    return 0.5 * (1 - near / (same + 1)) + 0.5 * far / (different + 1)


def slow_class_contrast(student, teacher, positive, temperature, epsilon=1e-4):
    total = 0.0
    for b in range(student.shape[1]):
        views = range(len(student))
        own, others = [j for j in views if positive[j, b]], [j for j in views if not positive[j, b]]
        for one in teacher[:, b]:
            e = [math.exp(float(one @ student[j, b]) / temperature) for j in views]
            negative = sum(e[j] for j in others)
            terms = sum(-math.log(e[j] / (e[j] + negative + epsilon)) for j in own)
            total += (terms - math.log(1 / (1 + negative + epsilon))) / (2 * (len(own) + epsilon))
    return total / student.shape[1]


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(2, 6, 3, 4, requires_grad=True)


@pytest.fixture
def label():
    torch.manual_seed(1)
    return pair_label(torch.tensor([0, 2, 255])[torch.randint(0, 3, (2, 12))])


def test_pairs_are_those_of_affinity_without_a_radius_and_the_diagonal():
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 3, 5))
    label[0, 1] = 255
    pairs, wide = pair_label(label.flatten(1)), affinity_label(label, (3, 5), radius=9)
    for one, other in zip(pairs, wide, strict=True):
        assert torch.equal(one.fill_diagonal_(7), other.fill_diagonal_(7))
    assert (pair_label(label.flatten(1)).diagonal(dim1=1, dim2=2) == 255).all()


def test_patch_contrast_equals_the_loop(tokens, label):
    assert patch_token_contrast(tokens, label).item() == pytest.approx(
        slow_patch_contrast(tokens.detach(), label), abs=1e-6
    )


def test_patch_contrast_has_the_gradient_of_affinity(tokens, label):
    """It is L_aff of |cosines| and a constant."""
    (ours,) = torch.autograd.grad(patch_token_contrast(tokens, label), tokens)
    unit = F.normalize(tokens.flatten(2), dim=1)
    loss = affinity_loss((unit.mT @ unit).abs(), label)
    assert torch.allclose(ours, torch.autograd.grad(loss, tokens)[0], atol=1e-7)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_patch_contrast_of_no_pair_is_half(tokens, precision):
    """All tokens ignored."""
    label = torch.full((2, 12, 12), 255)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = patch_token_contrast(tokens.to(precision), label)
    loss.backward()
    assert loss.item() == 0.5
    assert tokens.grad.abs().max() == 0


def views(negatives):
    """Projections of two global and four local views of three images."""
    torch.manual_seed(2)
    student = torch.randn(6, 3, 5, requires_grad=True)
    positive = torch.ones(6, 3, dtype=torch.bool)
    positive[2 : 2 + negatives, 1:] = False
    return student, torch.randn(2, 3, 5), positive


@pytest.mark.parametrize("negatives", [0, 1, 4])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_class_contrast_equals_the_loop(negatives, temperature):
    student, teacher, positive = views(negatives)
    loss = class_token_contrast(student, teacher, positive, temperature)
    expected = slow_class_contrast(student.detach(), teacher, positive, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("negatives", [0, 4])
def test_class_contrast_of_huge_projections_is_finite(precision, negatives):
    student, teacher, positive = views(negatives)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = class_token_contrast(300 * student.to(precision), 300 * teacher.to(precision), positive)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_the_teacher_has_no_gradient():
    student, teacher, positive = views(2)
    teacher.requires_grad_()
    class_token_contrast(student, teacher, positive).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
