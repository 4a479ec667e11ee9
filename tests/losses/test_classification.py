"""The classification loss against scikit-learn; smoothing and weights are off by default, exact when on."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor
from torch.autograd import gradcheck

from wsss_afa.errors import UserError
from wsss_afa.losses.classification import ClassificationLoss, balanced_positive_weight, classification_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-0.3, 0.2, 3.0]])
TAGS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The losses compute in float32 whatever they are given, so that differences are taken in wide steps.
WIDE = {"eps": 1e-2, "atol": 1e-3, "rtol": 1e-2}


def test_classification_equals_scikit_learn():
    logits, tags = randn(5, 3), (randn(5, 3, seed=1) > 0).float()
    each = [log_loss(tags[:, c], logits[:, c].sigmoid(), labels=[0, 1]) for c in range(3)]
    assert classification_loss(logits, tags).item() == pytest.approx(sum(each) / 3, rel=1e-5)


def test_classification_gradient():
    tags = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert gradcheck(lambda x: classification_loss(x, tags), (randn(2, 3).requires_grad_(),), **WIDE)


# Smoothing and weights


def test_both_are_off_by_default():
    assert torch.equal(ClassificationLoss()(LOGITS, TAGS), classification_loss(LOGITS, TAGS))
    assert not ClassificationLoss(positive_weight=[1, 2, 3]).state_dict()


def test_smoothing_mixes_the_losses_of_both_answers():
    """Cross-entropy is linear in the target: ε/2 of the tag's opposite and the rest of the tag itself."""
    right, wrong = (log_loss(t.flatten(), LOGITS.sigmoid().flatten()) for t in (TAGS, 1 - TAGS))
    smooth = ClassificationLoss(tag_smoothing=0.2)(LOGITS, TAGS)
    assert smooth.item() == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-5)
    best = torch.logit(torch.tensor([0.9, 0.1])).requires_grad_()
    ClassificationLoss(tag_smoothing=0.2)(best[None], torch.tensor([[1.0, 0.0]])).backward()
    torch.testing.assert_close(best.grad, torch.zeros(2), rtol=0, atol=1e-7)


def test_positive_weight_counts_a_tag_so_often():
    weight = torch.tensor([5.0, 1.0, 2.0])
    per_class = [
        log_loss(TAGS[:, c], LOGITS[:, c].sigmoid(), labels=[0, 1], normalize=False,
                 sample_weight=torch.where(TAGS[:, c] > 0, weight[c], 1.0).tolist())
        for c in range(3)
    ]  # fmt: skip
    loss = ClassificationLoss(positive_weight=weight.tolist())(LOGITS, TAGS)
    assert loss.item() == pytest.approx(sum(per_class) / TAGS.numel(), rel=1e-5)


def test_balanced_weights_even_out_a_class():
    tags = torch.zeros(1000, 4)
    tags[:100, 0], tags[:750, 1], tags[0, 2] = 1, 1, 1
    weight = balanced_positive_weight(tags)
    assert weight.tolist() == pytest.approx([9, 1 / 3, 100, 1])
    present = tags.sum(0)[:2]
    torch.testing.assert_close(weight[:2] * present, 1000 - present)


def test_balanced_weights_are_made_of_the_training_tags():
    loss = ClassificationLoss(positive_weight="balanced")
    with pytest.raises(AssertionError, match="balance comes first"):
        loss(LOGITS, TAGS)
    loss.balance(TAGS)
    weight = balanced_positive_weight(TAGS)
    assert weight.tolist() == pytest.approx([1, 1, 0.01])
    expected = classification_loss(LOGITS, TAGS, positive_weight=weight)
    assert torch.equal(loss(LOGITS, TAGS), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tag_smoothing": 1.0}, r"tag_smoothing=1\.0, need a share in \[0, 1\)"),
        ({"positive_weight": [1, 0]}, r"positive_weight=\[1, 0\]: need null, balanced or numbers above 0"),
        ({"positive_weight": "even"}, r"positive_weight=even: need null, balanced or numbers above 0"),
        ({"positive_weight": [1, 2]}, r"positive_weight has 2 numbers, need 3, one per class"),
    ],
)
def test_mistaken_losses(settings, words):
    with pytest.raises(UserError, match=words) as error:
        ClassificationLoss(**settings).balance(TAGS)
    assert "\n" not in str(error.value)
