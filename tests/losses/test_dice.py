"""Dice against a loop over classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from wsss_afa.losses import counts
from wsss_afa.losses.dice import dice_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 5, 6, generator=GENERATOR, dtype=torch.float64)
LABEL = torch.randint(3, (2, 10, 12), generator=GENERATOR)  # nobody has class 3


def by_definition(logits, label):
    logits = F.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
    overlaps = []
    for index in range(logits.shape[1]):
        probability, truth = logits.softmax(1)[:, index][label != 255], (label == index)[label != 255]
        both = (probability * truth).sum()
        overlaps.append(2 * both / (probability.sum() + truth.sum() + 1e-7))
    return 1 - torch.stack(overlaps).mean()


def near(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)


def test_it_is_the_definition():
    near(dice_loss(LOGITS, LABEL), by_definition(LOGITS, LABEL))
    right = F.one_hot(LABEL, 4).movedim(-1, 1) * 100.0
    torch.testing.assert_close(dice_loss(right, LABEL), torch.tensor(0.25))  # an absent class counts


def test_ignored_pixels_teach_nothing():
    label = LABEL.clone()
    label[:, :, 6:] = 255
    logits = LOGITS.clone().requires_grad_()
    near(dice_loss(logits, label), by_definition(LOGITS, label))
    dice_loss(logits, label).backward()
    assert not logits.grad[..., 5].any()
    nothing = dice_loss(logits, torch.full_like(label, 255))
    assert nothing == 1
    assert torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def test_processes_learn_what_one_does_with_the_whole_batch(monkeypatch):
    """The mean of gradients of two processes that share sums is that of the batch."""
    whole = LOGITS.clone().requires_grad_()
    dice_loss(whole, LABEL).backward()
    parts = [each.clone().requires_grad_() for each in LOGITS.split(1)]
    sums = []

    def collect(values, shared):
        sums.append(values)
        return values, 2

    monkeypatch.setattr(counts, "count_over_processes", collect)
    for part, label in zip(parts, LABEL.split(1), strict=True):
        dice_loss(part, label, shared_counts=True)
    totals = [sums[0] + sums[2], sums[1] + sums[3]]
    for part, label in zip(parts, LABEL.split(1), strict=True):
        answers = iter(totals)
        monkeypatch.setattr(counts, "count_over_processes", lambda *_, answers=answers: (next(answers), 2))
        dice_loss(part, label, shared_counts=True).backward()
    mean = torch.cat([part.grad for part in parts]) / 2
    torch.testing.assert_close(mean, whole.grad, rtol=1e-5, atol=1e-8)
