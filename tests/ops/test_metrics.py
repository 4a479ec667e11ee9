"""Scores against scikit-learn, and what is measured of pseudo labels and affinity."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score

import wsss_afa.ops.metrics
from wsss_afa.ops.metrics import SegmentationMetrics, TagAgreement, TagAveragePrecision, describe_labels
from wsss_afa.types import PseudoLabels

K = 5


@pytest.fixture
def labels() -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and truth of six images; the truth knows no class 3, and 255 in places."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, K, (6, 9, 7), generator=generator)
    wrong = torch.rand(target.shape, generator=generator) < 0.3
    prediction = target.where(~wrong, torch.randint(0, K, target.shape, generator=generator))
    target = target.masked_fill(target == 3, 255)
    return prediction, target


def scores(*batches: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    metric = SegmentationMetrics(K)
    for prediction, target in batches:
        metric.update(prediction, target)
    return metric.compute()


def test_equals_scikit_learn(labels):
    prediction, target = labels
    metric = SegmentationMetrics(K)
    metric.update(prediction, target)
    counted = (target != 255).numpy()
    truth, guess = target.numpy()[counted], prediction.numpy()[counted]
    confusion = confusion_matrix(truth, guess, labels=range(K))
    assert np.array_equal(metric.confusion.numpy(), confusion)
    expected = jaccard_score(truth, guess, labels=[0, 1, 2, 4], average=None)
    computed = metric.compute()
    np.testing.assert_allclose(computed["iou"][[0, 1, 2, 4]].numpy(), expected, rtol=0, atol=1e-9)
    assert computed["miou"].item() == pytest.approx(expected.mean(), abs=1e-9)


def test_classes_without_truth_are_left_out(labels):
    iou = scores(labels)["iou"]
    assert math.isnan(iou[3])
    assert (labels[0] == 3).any()  # though it was predicted
    assert iou[[0, 1, 2, 4]].isfinite().all()


def test_batches_add_up(labels):
    prediction, target = labels
    one_by_one = scores(*((p[None], t[None]) for p, t in zip(prediction, target, strict=True)))
    assert torch.equal(one_by_one["miou"], scores(labels)["miou"])


def test_two_halves_merged_equal_one_pass(labels):
    prediction, target = labels
    first, second = SegmentationMetrics(K), SegmentationMetrics(K)
    first.update(prediction[:2], target[:2])
    second.update(prediction[2:], target[2:])
    first.merge_state(second)
    assert torch.equal(first.compute()["miou"], scores(labels)["miou"])


def test_it_is_no_mean_of_images(labels):
    prediction, target = labels
    each = [scores((p[None], t[None]))["miou"] for p, t in zip(prediction, target, strict=True)]
    assert abs(torch.stack(each).mean() - scores(labels)["miou"]) > 1e-3


def test_perfect_and_hopeless():
    target = torch.tensor([[[0, 1, 2, 255]]])
    assert scores((target.clamp(max=4), target))["miou"] == 1
    assert scores(((target + 1).clamp(max=4), target))["miou"] == 0


def test_ignored_pixels_count_for_nothing(labels):
    prediction, target = labels
    other = prediction.where(target != 255, 0)
    assert torch.equal(scores((other, target))["miou"], scores(labels)["miou"])


def test_nothing_counted_is_nan():
    empty = torch.full((1, 2, 2), 255)
    assert math.isnan(scores((torch.zeros_like(empty), empty))["miou"])


def test_reset_forgets(labels):
    metric = SegmentationMetrics(K)
    metric.update(*labels)
    metric.reset()
    assert metric.confusion.sum() == 0


def test_large_counts_stay_exact():
    metric = SegmentationMetrics(2)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    metric.confusion += torch.tensor([[2**40 - 1, 0], [0, 2**40]])
    assert metric.compute()["iou"][0].item() == pytest.approx(2**40 / (2**40 + 1), abs=1e-15)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(RuntimeError):
        SegmentationMetrics(2).update(torch.tensor([[1]]), torch.tensor([[7]]))


# Average precision


def test_precision_equals_scikit_learn_on_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    logits, tags = rng.standard_normal((40, 5)).astype(np.float32), rng.random((40, 5)) < 0.3
    tags[:, 2] = False
    metric = TagAveragePrecision()
    for part in (slice(0, 13), slice(13, 40)):
        metric.update(torch.from_numpy(logits[part]), torch.from_numpy(tags[part]).int())
    expected = np.mean([average_precision_score(tags[:, c], logits[:, c]) for c in (0, 1, 3, 4)])
    assert metric.compute()["map"].item() == pytest.approx(expected, rel=1e-5)
    metric.reset()
    metric.update(torch.zeros(2, 1), torch.zeros(2, 1).int())
    assert metric.compute()["map"].isnan()


# Affinity


def shares(affinity, label):
    segmentation = torch.zeros(1, 2, 2, dtype=torch.long)
    return describe_labels(PseudoLabels(segmentation, label), affinity)


def test_saturated_pairs_are_counted_among_labelled_ones_alone():
    rng = np.random.default_rng(0)
    affinity = rng.choice([0.0, 0.019, 0.021, 0.5, 0.979, 0.981, 1.0], (2, 30, 30)).astype(np.float32)
    label = rng.choice([0, 1, 255], affinity.shape)
    expected = np.mean([a < 0.02 or a > 0.98 for a in affinity[label != 255]])
    measured = shares(torch.tensor(affinity), torch.tensor(label))["saturated_affinity"]
    assert measured.item() == pytest.approx(expected)
    assert 0.4 < expected < 0.8


def test_without_labelled_pairs_nothing_is_saturated():
    label = torch.full((1, 4, 4), 255)
    measured = shares(torch.ones(1, 4, 4), label)
    assert all(measured[f"{what}_affinity"] == 0 for what in ("saturated", "false", "missed"))


def test_example():
    result = doctest.testmod(wsss_afa.ops.metrics)
    assert result.attempted > 0
    assert result.failed == 0


def test_agreement_equals_a_loop_over_classes():
    rng = torch.Generator().manual_seed(0)
    labels, tags = torch.randint(0, 4, (6, 5, 9), generator=rng), torch.randint(0, 2, (6, 4), generator=rng)
    tags[:, 1] = 0  # no image has the second class, though pixels are given to it
    labels[tags[:, 0] == 1] = labels[tags[:, 0] == 1].masked_fill(labels[tags[:, 0] == 1] == 1, 0)
    labels[0, 0, 0], tags[0, 0] = 1, 1  # one pixel of 45 is enough
    metric, scores = TagAgreement(num_classes=4), []
    for start in (0, 4):
        metric.update(labels[start : start + 4], tags[start : start + 4])
    for c in (0, 2, 3):
        right = sum((label == c + 1).sum().item() for label, tag in zip(labels, tags, strict=True) if tag[c])
        given = (labels == c + 1).sum().item()
        found = [
            (label == c + 1).float().mean().item() >= 0.01
            for label, tag in zip(labels, tags, strict=True)
            if tag[c]
        ]
        precision, recall = right / max(given, 1), sum(found) / len(found)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    of_tags = np.mean(scores)
    assert metric.compute().item() == pytest.approx(of_tags)
    made = torch.where(tags[:, 0, None, None] == 1, 1, 0).expand_as(labels)
    metric.reset()
    metric.update(labels, tags, made)
    iou = jaccard_score(made.flatten(), labels.flatten(), labels=[0, 1], average="macro")
    assert metric.compute().item() == pytest.approx((of_tags + iou) / 2)
