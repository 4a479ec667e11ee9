"""Resizing of boxes against cropping, interpolating and pasting image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from wsss_afa.ops.boxes import resize_boxes

WHOLE = (0, 12, 0, 15)
CASES = {
    "shrink to the corner": ([(2, 10, 3, 13), WHOLE], [(0, 4, 0, 5), (0, 6, 0, 7)], (6, 7)),
    "grow": ([(0, 6, 0, 7), (1, 4, 2, 5)], [(0, 12, 1, 15), (3, 9, 0, 15)], (12, 15)),
    "odd": ([(1, 12, 0, 15), (0, 7, 2, 15)], [(0, 5, 0, 7), (0, 3, 0, 6)], (6, 7)),
    "keep": ([(1, 9, 2, 8), WHOLE], [(1, 9, 2, 8), WHOLE], (12, 15)),
    "one pixel": ([(5, 6, 0, 15), (0, 12, 14, 15)], [(3, 8, 2, 4), (11, 12, 0, 1)], (12, 15)),
}


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.rand(2, 3, 12, 15, generator=torch.Generator().manual_seed(0))


def paste(one, source, target, size, align_corners):
    """Crop, interpolate and paste (G, H, W)."""
    crop = one[None, :, source[0] : source[1], source[2] : source[3]]
    new = (target[1] - target[0], target[3] - target[2])
    canvas = torch.zeros(len(one), *size)
    canvas[:, target[0] : target[1], target[2] : target[3]] = F.interpolate(
        crop, size=new, mode="bilinear", align_corners=align_corners
    )[0]
    return canvas


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_equals_crop_and_interpolate(maps, name, align_corners):
    sources, targets, size = CASES[name]
    resized = resize_boxes(maps, torch.tensor(sources), torch.tensor(targets), size, align_corners)
    expected = [
        paste(one, source, target, size, align_corners)
        for one, source, target in zip(maps, sources, targets, strict=True)
    ]
    torch.testing.assert_close(resized, torch.stack(expected), rtol=0, atol=2e-6)


def test_outside_the_target_is_zero(maps):
    target = torch.tensor([(2, 5, 1, 4), (0, 6, 3, 7)])
    resized = resize_boxes(maps + 1, torch.tensor([WHOLE, WHOLE]), target, (6, 7))
    for one, (top, bottom, left, right) in zip(resized, target.tolist(), strict=True):
        assert (one[:, top:bottom, left:right] > 0).all()
        assert one.count_nonzero() == 3 * (bottom - top) * (right - left)


def test_pixels_outside_the_source_are_not_read(maps):
    source, target = torch.tensor([(2, 9, 3, 11), (0, 5, 6, 15)]), torch.tensor([(0, 6, 0, 7)] * 2)
    other = torch.full_like(maps, 99.0)
    for i, (top, bottom, left, right) in enumerate(source.tolist()):
        other[i, :, top:bottom, left:right] = maps[i, :, top:bottom, left:right]
    for align_corners in (False, True):
        first, second = (resize_boxes(m, source, target, (6, 7), align_corners) for m in (maps, other))
        assert torch.equal(first, second)


def test_gradient(maps):
    source, target = torch.tensor([(0, 4, 0, 4), (1, 4, 0, 3)]), torch.tensor([(0, 3, 1, 3), (0, 3, 0, 3)])
    small = maps[:, :1, :4, :4].double().requires_grad_()
    assert gradcheck(lambda m: resize_boxes(m, source, target, (3, 3)), (small,))
