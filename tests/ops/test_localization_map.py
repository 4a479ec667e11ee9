"""Evaluation by localization maps: merged scales, predicted classes, background."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from wsss_afa.errors import UserError
from wsss_afa.ops.localization_map import LocalizationSegmentation
from wsss_afa.types import Activation, AffinityTokens


class Net:
    """Maps, logits and a segmentation of three classes that are functions of the image."""

    def __init__(self, logits=(1.0, -1.0, -1.0), shown=(0, 0, 0)):
        self.logits, self.shown = torch.tensor([logits]), shown

    def localize(self, image):
        maps = F.avg_pool2d(image, 4) * torch.tensor([1.0, -2.0, 0.5])[:, None, None]
        return Activation(maps, AffinityTokens([], [], (maps.shape[-2], maps.shape[-1])))

    def answer(self, image):
        label = torch.zeros(1, 5, 5, dtype=torch.long)
        flat, start = label.view(-1), 0
        for c, count in enumerate(self.shown):
            flat[start : start + count] = c + 1
            start += count
        return self.logits, F.one_hot(label, 4).permute(0, 3, 1, 2).float()


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(1, 3, 20, 28)


def protocol(**changes):
    settings = {
        "scales": [1.0, 0.5],
        "mirror": True,
        "size": [16, 16],
        "predicted": "classifier",
        "min_cells": 3,
    }
    return LocalizationSegmentation("lam", **settings | changes)


def resize(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def test_scores_equal_the_sum_written_out(image):
    net, squashed, total = Net(), resize(image, (16, 16)), 0
    for side in (16, 8):
        scaled = squashed if side == 16 else resize(squashed, (8, 8))
        plain, twin = (
            resize(each, (16, 16))
            for each in (net.localize(scaled).cam, net.localize(scaled.flip(-1)).cam.flip(-1))
        )
        total = total + torch.maximum(plain, twin)
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    expected = resize((total - low) / (high - low + 1e-5), (20, 28))[:, 0]
    scores = protocol().probabilities(net, image)
    assert scores.shape == (1, 4, 20, 28)
    torch.testing.assert_close(scores[:, 1], expected.clamp(min=1e-5))
    torch.testing.assert_close(scores[:, 0], (1 - expected).clamp(min=1e-5))
    assert (scores[:, 2:] == 1e-5).all(), "classes that are not predicted"


@pytest.mark.parametrize(
    ("predicted", "logits", "shown", "classes"),
    [
        ("classifier", (1, -1, 2), (9, 9, 0), [0, 2]),
        ("classifier", (-1, -1, -1), (3, 2, 9), [0, 2]),
        ("classifier", (-1, -1, -1), (0, 0, 0), []),
        ("segmentation", (1, -1, 2), (2, 9, 0), [1]),
        ("segmentation", (1, -1, 2), (2, 0, 0), [0, 2]),
    ],
)
def test_classes_are_predicted(image, predicted, logits, shown, classes):
    found = protocol(predicted=predicted).classes(Net(logits, shown), image)
    assert found[0].nonzero().flatten().tolist() == classes


def test_without_a_class_all_is_background(image):
    scores = protocol().probabilities(Net((-1, -1, -1)), image)
    assert (scores.argmax(1) == 0).all()
    assert scores.isfinite().all()


def test_it_names_itself():
    assert protocol().extra_repr() == (
        "lam (resized to 16×16 px; localization maps of scales 1, 0.5; mirror; classes of the classifier; "
        "no CRF)"
    )


def test_a_method_without_maps_is_refused(image):
    class Other:
        classify = segment = None

    with pytest.raises(UserError, match="protocol=lam needs localization maps, which Other does not have"):
        protocol().probabilities(Other(), image)
    with pytest.raises(UserError, match=r"protocol\.predicted=tags is not known"):
        protocol(predicted="tags")
