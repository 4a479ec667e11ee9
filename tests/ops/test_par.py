"""Pixel-adaptive refinement against the form that holds every neighbour of every map."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from wsss_afa.errors import UserError
from wsss_afa.ops.par import PixelAdaptiveRefinement

DILATIONS = (1, 2, 4, 8, 12, 24)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Two images with flat parts, where the spread of colours is 0."""
    image = rand(2, 3, 14, 11)
    image[:, :, :5, :6] = 0.25
    image[1] = image[1].mul(255).round().div(255)
    return image


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    return rand(2, 4, 14, 11, seed=1)


# The distances' kernel is kept in float32: hence 1e-8 against the loop version in float64.


@pytest.mark.parametrize("dilations", [DILATIONS, (1,), (3, 1)])
def test_values(image, maps, dilations):
    refined = PixelAdaptiveRefinement(3, dilations)(image, maps)
    expected = reference.par(image, maps, 3, dilations)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-8)


def test_widths(image, maps):
    par = PixelAdaptiveRefinement(2, (1, 2), color_width=0.7, position_weight=0.5)
    expected = reference.par(image, maps, 2, (1, 2), color_width=0.7, position_weight=0.5)
    torch.testing.assert_close(par(image, maps), expected, rtol=0, atol=1e-6)


def test_float32(image, maps):
    refined = PixelAdaptiveRefinement(10)(image.float(), maps.float())
    assert refined.dtype == torch.float32
    expected = reference.par(image, maps, 10, DILATIONS).float()
    torch.testing.assert_close(refined, expected, rtol=0, atol=2e-5)


class Largest(TorchDispatchMode):
    """Remembers the most elements that the result of any operation held in memory."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // one.element_size())
        return made


def test_neighbours_of_all_maps_are_never_held():
    image, maps = rand(1, 3, 64, 64), rand(1, 12, 64, 64)
    neighbours = 8 * len(DILATIONS) * maps.numel()
    with Largest() as slow:
        reference.par(image, maps, 2, DILATIONS)
    with Largest() as ours:
        PixelAdaptiveRefinement(2, DILATIONS)(image, maps)
    assert slow.elements >= neighbours
    assert ours.elements <= neighbours / 10


def test_kernel(image):
    par = PixelAdaptiveRefinement(1)
    kernel = par.kernel(image)
    assert kernel.shape == (2, 48, 14, 11)
    assert kernel.min() >= 0
    torch.testing.assert_close(kernel.sum(1), torch.full_like(kernel[:, 0], 1.01), rtol=0, atol=1e-7)
    torch.testing.assert_close(kernel, reference.par_weights(image, DILATIONS), rtol=0, atol=1e-8)


@pytest.mark.parametrize("num_iter", [0, 1, 10])
def test_constant_grows_by_the_weights_sum(image, num_iter):
    constant = torch.full((2, 1, 14, 11), 0.4, dtype=torch.float64)
    refined = PixelAdaptiveRefinement(num_iter)(image, constant)
    torch.testing.assert_close(refined, constant * 1.01**num_iter, rtol=1e-6, atol=0)


def test_an_image_of_one_colour_smooths_evenly():
    flat = torch.full((1, 3, 5, 5), 0.5, dtype=torch.float64)
    kernel = PixelAdaptiveRefinement(1, (1,), position_weight=0.0).kernel(flat)
    torch.testing.assert_close(kernel, torch.full_like(kernel, 1 / 8))


def test_edges_of_the_image_are_kept():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    image[..., 4:] = 1
    noisy = (image[:, :1] + rand(1, 1, 8, 8) * 0.5) / 1.5
    refined = PixelAdaptiveRefinement(5, (1, 2))(image, noisy)
    assert refined[..., :4].max() < refined[..., 4:].min()


def test_linear_in_the_maps(image, maps):
    par, other = PixelAdaptiveRefinement(4), rand(2, 4, 14, 11, seed=2)
    expected = 2 * par(image, maps) - 3 * par(image, other)
    torch.testing.assert_close(par(image, 2 * maps - 3 * other), expected)


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirrors_with_its_input(image, maps, axis):
    par = PixelAdaptiveRefinement(4)
    torch.testing.assert_close(par(image.flip(axis), maps.flip(axis)), par(image, maps).flip(axis))


def test_maps_do_not_see_each_other(image, maps):
    par, order = PixelAdaptiveRefinement(4), [2, 0, 3, 1]
    torch.testing.assert_close(par(image, maps[:, order]), par(image, maps)[:, order])
    torch.testing.assert_close(par(image, maps[:, :1]), par(image, maps)[:, :1])


def test_images_do_not_see_each_other(image, maps):
    par = PixelAdaptiveRefinement(4)
    torch.testing.assert_close(par(image[1:], maps[1:]), par(image, maps)[1:])


@pytest.mark.parametrize("extent", [[(14, 11), (14, 11)], [(9, 11), (14, 4)], [(1, 3), (2, 1)]])
def test_extent_is_the_crop(image, maps, extent):
    par = PixelAdaptiveRefinement(3)
    refined = par(image, maps, torch.tensor(extent))
    for i, (height, width) in enumerate(extent):
        crop = (slice(i, i + 1), slice(None), slice(height), slice(width))
        torch.testing.assert_close(refined[crop], par(image[crop], maps[crop]))


def test_extent_never_sees_the_rest(image, maps):
    extent = torch.tensor([(9, 7), (4, 11)])
    other_image, other_maps = image.clone(), maps.clone()
    for i, (height, width) in enumerate(extent.tolist()):
        for values in (other_image, other_maps):
            values[i, :, height:] = 77.0
            values[i, :, :, width:] = -5.0
    par = PixelAdaptiveRefinement(3)
    first, second = par(image, maps, extent), par(other_image, other_maps, extent)
    for i, (height, width) in enumerate(extent.tolist()):
        assert torch.equal(first[i, :, :height, :width], second[i, :, :height, :width])


def test_input_is_untouched(image, maps):
    before = image.clone(), maps.clone()
    PixelAdaptiveRefinement(2)(image, maps)
    assert torch.equal(image, before[0])
    assert torch.equal(maps, before[1])


def test_nothing_to_train_nor_to_save():
    par = PixelAdaptiveRefinement()
    assert not list(par.parameters())
    assert not par.state_dict()


@pytest.mark.parametrize("dilations", [(), (0, 1), (-1,)])
def test_dilations_are_checked(dilations):
    with pytest.raises(UserError, match="need one or more distances") as error:
        PixelAdaptiveRefinement(dilations=dilations)
    assert "\n" not in str(error.value)
