"""The steps of pseudo labels one by one, against loops over images, classes and pixels."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import reference
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.labels import (
    best_class,
    cam_label,
    class_scores,
    ignore_outside,
    merge_thresholds,
    own_classes,
)
from wsss_afa.types import MEAN, STD

TAGS = torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]])


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tags", "ids", "present"),
    [
        ([[0, 1, 0], [1, 0, 1]], [[0, 2], [0, 1, 3]], [2, 3]),
        ([[0, 0, 0]], [[0]], [1]),
        ([[1, 1, 1], [0, 0, 0]], [[0, 1, 2, 3], [0]], [4, 1]),
    ],
)
def test_own_classes(tags: Sequence, ids: Sequence, present: Sequence):
    classes = own_classes(torch.tensor(tags, dtype=torch.float32))
    assert classes.ids.shape[1] == max(2, *present)
    assert classes.present.sum(1).tolist() == present
    for i, own in enumerate(ids):
        assert classes.ids[i, : len(own)].tolist() == own
        assert classes.present[i, : len(own)].all()


def test_class_scores():
    cam = rand(4, 4, 5, 6)
    classes = own_classes(TAGS)
    scores = class_scores(cam, classes, 0.35)
    for i, tags in enumerate(TAGS.tolist()):
        maps, ids = reference.own_maps(cam[i], tags, 0.35)
        torch.testing.assert_close(scores[i, : len(ids)], maps.softmax(0))
        assert (scores[i, len(ids) :] == 0).all()
        assert torch.equal(best_class(scores, classes)[i], reference.best_ids(maps, ids))
    torch.testing.assert_close(scores.sum(1), torch.ones(4, 5, 6))


def test_cam_label_at_its_thresholds():
    values = torch.tensor([0.0, 0.25, 0.3, 0.5, 0.6])  # exact where compared
    label = cam_label(values.view(1, 1, 1, 5), torch.ones(1, 1), low=0.25, high=0.5)
    assert label.flatten().tolist() == [0, 0, 255, 255, 1]
    label = cam_label(values.view(1, 1, 1, 5), torch.ones(1, 1), low=0.25, high=0.25)
    assert label.flatten().tolist() == [0, 0, 1, 1, 1]


def test_cam_label_equals_the_loop():
    cam, whole = rand(4, 4, 6, 7), (0, 6, 0, 7)
    label = cam_label(cam, TAGS, 0.35, 0.55)
    expected = [reference.cam_label(c, t, 0.35, 0.55, whole) for c, t in zip(cam, TAGS.tolist(), strict=True)]
    assert torch.equal(label, torch.stack(expected))


def test_merging_of_thresholds():
    low, high = torch.tensor([[[0, 0, 2, 2, 1]]]), torch.tensor([[[0, 3, 2, 0, 2]]])
    assert merge_thresholds(low, high).flatten().tolist() == [0, 3, 2, 255, 2]
    assert torch.equal(merge_thresholds(low, high)[0], reference.merge(low[0], high[0], (0, 1, 0, 5)))


def test_ignore_outside_leaves_its_input():
    label = torch.zeros(1, 3, 3, dtype=torch.long)
    ignored = ignore_outside(label, torch.tensor([[1, 3, 0, 2]]))
    assert ignored[0].tolist() == [[255, 255, 255], [0, 0, 255], [0, 0, 255]]
    assert label.eq(0).all()


def test_colours_survive_normalisation():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).double()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    rgb = to_rgb((pixels - mean + 0.5) / std, MEAN, STD)  # half a unit up: truncation finds the pixel again
    torch.testing.assert_close(rgb.double(), pixels / 255)
    extreme = to_rgb(torch.tensor([-50.0, 50.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2), MEAN, STD)
    assert extreme[0, 0].tolist() == [[0.0, 1.0]]
