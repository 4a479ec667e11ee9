"""The draw of uncertain tokens against the loop over cells that the note on MoRe describes."""

from __future__ import annotations

import pytest
import torch

from wsss_afa.ops.uncertain_tokens import UncertainTokens


def slow_candidates(label, offset):
    """Flat indices of one image's tokens, and how many of its inner cells are of objects."""
    value = [[0 if v == 0 else 1 if v == 255 else 2 for v in row] for row in label.tolist()]
    height, width = label.shape
    found, objects = set(), set()
    for i in range(height - 6):
        for j in range(width - 6):
            total = sum(value[y][x] for y in range(i, i + 6) for x in range(j, j + 6))
            if value[i + 3][j + 3] == 1 and total / 36 >= 1.2:
                found.add((i + offset) * width + j + offset)
            if value[i + 3][j + 3] == 2:
                objects.add((i + offset) * width + j + offset)
    return found, objects


def labels(share, seed=0):
    """Labels of three images, a share of which is ignored and the rest mostly of class 2."""
    torch.manual_seed(seed)
    rest = 2 * (torch.rand(3, 12, 15) < 0.8).long()
    return torch.where(torch.rand(3, 12, 15) < share, 255, rest)


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.5])
def test_drawn_tokens_are_those_of_the_loop(share, offset):
    draw, label = UncertainTokens(offset=offset), labels(share)
    for image, chosen in zip(label, draw(label, torch.arange(3)).tolist(), strict=True):
        found, objects = slow_candidates(image, offset)
        kept = [token for token in chosen if token >= 0]
        inside = [token for token in kept if token in found]
        others = [token for token in kept if token not in found]
        if len(found) > 8:
            assert len(set(inside)) == 8
            assert not others
        else:
            assert set(inside) == found
            assert len(others) == (8 - len(found)) // 4
            assert set(others) <= objects


def test_the_draw_hangs_on_the_seed_of_its_image():
    draw, label = UncertainTokens(), labels(0.5)
    drawn = draw(label, torch.arange(3))
    assert torch.equal(drawn[1:], draw(label[1:], torch.arange(1, 3)))
    assert not torch.equal(drawn, draw(label, torch.arange(3) + 9))


def test_without_objects_any_inner_cells_fill_up():
    chosen = UncertainTokens()(torch.zeros(1, 8, 8, dtype=torch.long), torch.tensor([0]))[0]
    kept = chosen[chosen >= 0].tolist()
    assert len(kept) == 2
    assert all(3 <= token // 8 < 5 and 3 <= token % 8 < 5 for token in kept)


@pytest.mark.parametrize("size", [(6, 6), (6, 20), (3, 4)])
def test_a_small_grid_has_no_tokens(size):
    assert (UncertainTokens()(torch.full((2, *size), 255), torch.tensor([0, 1])) == -1).all()


def test_a_grid_of_one_inner_cell_has_at_most_that():
    label = torch.full((1, 7, 7), 255)
    label[0, :3] = 1
    chosen = UncertainTokens()(label, torch.tensor([0]))
    assert set(chosen[chosen >= 0].tolist()) == {3 * 7 + 3}
