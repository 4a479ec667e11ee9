"""The walk along attention against loops over images, layers, pixels and components."""

from __future__ import annotations

import pytest
import torch

from wsss_afa.ops.attention_walk import (
    AttentionWalk,
    box_mask,
    kept_layers,
    label_scores,
    layer_affinity,
    transition,
)  # fmt: skip
from wsss_afa.ops.labels import own_classes

GRID = (4, 5)
COUNT = GRID[0] * GRID[1]


@pytest.fixture
def attention():
    return torch.rand(3, 2, COUNT, COUNT, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def gate():
    return torch.rand(2, COUNT, COUNT, generator=torch.Generator().manual_seed(1)).double()


def by_hand_boxes(values, threshold, inclusive):
    """One map (h, w): flood each component, then fill its box."""
    height, width = values.shape
    levels = [[int(255 * value) for value in row] for row in values.tolist()]
    limit = int(threshold * max(max(row) for row in levels))
    left = {(y, x) for y in range(height) for x in range(width) if levels[y][x] > limit}
    mask = torch.zeros(height, width, dtype=torch.bool)
    while left:
        component, edge = set(), {left.pop()}
        while edge:
            y, x = edge.pop()
            component.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge |= near
        rows, columns = zip(*component, strict=True)
        cut = 0 if inclusive else 1
        bottom, right = min(max(rows) + 1, height - cut), min(max(columns) + 1, width - cut)
        mask[min(rows) : bottom, min(columns) : right] = True
    return mask


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("threshold", [0.4, 0.79])
def test_boxes(threshold, inclusive):
    maps = torch.rand(3, 7, 6, 9, generator=torch.Generator().manual_seed(2)) ** 4
    maps[0, 0] = 0
    mask = box_mask(maps, threshold, inclusive)
    for image, own in zip(mask, maps, strict=True):
        for found, values in zip(image, own, strict=True):
            assert torch.equal(found, by_hand_boxes(values, threshold, inclusive))
    assert not mask[0, 0].any()


def test_diagonal_neighbours_share_a_box_and_maps_do_not():
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 0, 2] = maps[0, 0, 1, 1] = 1
    maps[0, 1, 1, 1] = 1
    mask = box_mask(maps, 0.5)
    assert mask[0, 0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert mask[0, 1].nonzero().tolist() == [[1, 1]]


def test_the_gate_cancels_out_of_the_choice(attention, gate):
    kept = kept_layers(attention)
    for index in range(2):
        differences = torch.stack([(gate[index] - layer[index]).sum() for layer in attention])
        assert torch.equal(kept[:, index], differences <= differences.mean())


def test_affinity(attention, gate):
    torch.testing.assert_close(layer_affinity(attention), sum(attention) / 3)
    kept = kept_layers(attention)
    for index in range(2):
        own = [layer[index] for layer, chosen in zip(attention, kept[:, index], strict=True) if chosen]
        expected = sum(own) / (len(own) + 1e-5) * gate[index]
        torch.testing.assert_close(layer_affinity(attention, gate)[index], expected)


def test_transition(gate):
    for index, found in enumerate(transition(gate)):
        matrix = gate[index].clone()
        for _ in range(3):
            for column in range(COUNT):
                matrix[:, column] /= matrix[:, column].sum()
            for row in range(COUNT):
                matrix[row] /= matrix[row].sum()
        matrix = (matrix + matrix.T) / 2
        torch.testing.assert_close(found, matrix @ matrix)


def test_maps_inside_their_boxes_are_carried(attention, gate):
    maps = torch.rand(2, 3, *GRID, generator=torch.Generator().manual_seed(3)).double()
    walked = AttentionWalk(0.6)(maps, attention, gate)
    steps, mask = transition(layer_affinity(attention, gate)), box_mask(maps, 0.6)
    for image in range(2):
        for index in range(3):
            columns = steps[image] * mask[image, index].flatten()  # the authors mask columns
            expected = (columns @ maps[image, index].flatten()).view(GRID)
            torch.testing.assert_close(walked[image, index], expected)
    unmasked = AttentionWalk(None)(maps, attention)
    expected = maps.flatten(2) @ transition(attention.mean(0)).mT
    torch.testing.assert_close(unmasked.flatten(2), expected)


def test_a_uniform_walk_averages_the_box():
    maps = torch.rand(1, 1, *GRID)
    walked = AttentionWalk(None)(maps, torch.ones(2, 1, COUNT, COUNT))
    torch.testing.assert_close(walked, maps.mean().expand_as(walked))


def test_a_token_without_anybody_is_no_nan(attention):
    gate = torch.ones(2, COUNT, COUNT).double()
    gate[:, 0] = gate[:, :, 0] = 0
    assert AttentionWalk()(torch.rand(2, 1, *GRID).double(), attention, gate).isfinite().all()


def test_scores_of_labels():
    maps = torch.rand(2, 2, *GRID, generator=torch.Generator().manual_seed(4)) + 3
    classes = own_classes(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    scores = label_scores(maps, classes, (8, 10))
    assert scores.shape == (2, 3, 8, 10)
    own = maps[0] - maps[0].flatten(1).amin(1)[:, None, None]
    own = own / own.flatten(1).amax(1)[:, None, None]
    own = torch.nn.functional.interpolate(own[None], size=(8, 10), mode="bilinear")[0]
    torch.testing.assert_close(scores[0, 1:], own)
    torch.testing.assert_close(scores[0, 0], 1 - own.amax(0))
    assert scores[1, 0].eq(1).all()
    assert scores[1, 1:].eq(0).all()
