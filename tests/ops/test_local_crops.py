"""Local crops: where they may lie, what they cut, and that they hang on the image's seed alone."""

from __future__ import annotations

import pytest
import torch

from wsss_afa.errors import UserError
from wsss_afa.ops.draws import draw_cells, uniform
from wsss_afa.ops.local_crops import LocalCrops, certainty, corner_candidates, cut


@pytest.fixture
def mask():
    torch.manual_seed(0)
    return torch.randint(0, 3, (2, 20, 24))


def slow_candidates(mask, side, count):
    """Corners of one image (rows, columns) by the loop over cells of the window."""
    height, width = mask.shape
    half, free, every = side // 2, set(), set()
    for y in range(height - side):
        for x in range(width - side):
            every.add((y, x))
            if mask[y + half, x + half] <= 1:
                free.add((y, x))
    return free if len(free) >= count else every


def test_certainty_has_uncertain_scores_between_the_thresholds():
    score = torch.tensor([[[0.0, 0.25, 0.26, 0.699, 0.75, 1.0]]])
    assert certainty(score, 0.25, 0.75).tolist() == [[[0, 0, 1, 1, 2, 2]]]


def test_candidates_equal_the_loop_over_cells(mask):
    mask[1] = 2  # certain everywhere: all corners
    for image, found in zip(mask, corner_candidates(mask, 8, 4), strict=True):
        assert {tuple(cell) for cell in found.nonzero().tolist()} == slow_candidates(image, 8, 4)


def test_cut_equals_slicing(mask):
    corners = torch.tensor([[[0, 0], [12, 16], [3, 5]], [[1, 2], [7, 0], [4, 16]]])
    crops = cut(mask[:, None], corners, 8)
    assert crops.shape == (2, 3, 1, 8, 8)
    for i, image in enumerate(mask):
        for j, (y, x) in enumerate(corners[i].tolist()):
            assert torch.equal(crops[i, j, 0], image[y : y + 8, x : x + 8])


def test_corners_are_different_candidates_and_hang_on_the_seed(mask):
    crops, seeds = LocalCrops(count=5, side=8), torch.tensor([3, 2**32 - 1])
    corners = crops.corners(mask, seeds)
    assert torch.equal(corners, crops.corners(mask, seeds))
    assert torch.equal(corners[1:], crops.corners(mask[1:], seeds[1:])), "whatever the batch"
    assert not torch.equal(corners, crops.corners(mask, seeds + 1))
    candidates = corner_candidates(mask, 8, 5)
    for free, drawn in zip(candidates, corners.tolist(), strict=True):
        assert len({tuple(each) for each in drawn}) == 5
        assert all(free[y, x] for y, x in drawn)


def test_every_candidate_is_drawn_as_often():
    candidates = torch.tensor([[True, False, True], [True, False, True]])[None].expand(6000, -1, -1)
    counts = draw_cells(candidates, torch.arange(6000), 2).flatten().bincount(minlength=6)
    assert counts[[1, 4]].tolist() == [0, 0]
    assert (counts[[0, 2, 3, 5]] - 3000).abs().max() < 150  # 4 standard deviations


def test_others_fill_up_where_candidates_are_few():
    drawn = draw_cells(torch.tensor([[[False, True, False, False]]]), torch.tensor([0]), 3)[0].tolist()
    assert drawn[0] == 1
    assert len(set(drawn)) == 3


def test_numbers_of_a_seed():
    one, two, three = uniform(torch.tensor([5, 5, 6]), (4,))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_crop_is_background_by_its_mean():
    mask = torch.zeros(1, 10, 10, dtype=torch.long)
    mask[0, 0, :4] = 2  # 8 of 16 cells of the first crop
    crops, corners = LocalCrops(count=2, side=4, background_share=0.5), torch.tensor([[[0, 0], [1, 0]]])
    assert crops.mask_means(mask, corners).tolist() == [[0.5, 0.0]]
    assert crops.is_object(mask, corners).tolist() == [[False, False]]
    assert LocalCrops(2, 4, 0.49).is_object(mask, corners).tolist() == [[True, False]]


@pytest.mark.parametrize("side", [20, 30])
def test_too_large_a_crop_is_named(mask, side):
    with pytest.raises(UserError, match=r"raise data\.crop_size or lower method\.crops\.side"):
        LocalCrops(8, side).corners(mask, torch.tensor([0, 0]))
