"""Multi-scale activation maps against a loop over images, scales and classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from wsss_afa.errors import UserError
from wsss_afa.ops.cam import MultiScaleCAM, normalize_cam
from wsss_afa.types import Activation, AffinityTokens


class Pooled:
    """A localizer without parameters: three maps, asymmetric under mirroring and of both signs."""

    def __init__(self, cell: int = 4):
        self.cell = cell
        self.sizes: list[tuple[int, ...]] = []

    def activate(self, image: Tensor) -> Activation:
        self.sizes.append(tuple(image.shape[-2:]))
        ramp = torch.linspace(-1, 1, image.shape[-1]).expand_as(image)
        cam = F.avg_pool2d(image * (1 + ramp) + 0.3 * ramp, self.cell)
        tokens = cam.flatten(2).mT[:, None]  # (B, 1, N, 3)
        return Activation(cam, AffinityTokens([tokens], [tokens], (cam.shape[-2], cam.shape[-1])))

    def affinity_head(self, tokens: AffinityTokens) -> Tensor:
        raise AssertionError("activation maps need no affinity")


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))


def expected(image: Tensor, scales: tuple[float, ...], mirror: bool) -> Tensor:
    net = Pooled()
    maps = [
        reference.multi_scale_cam(lambda x: net.activate(x[None]).cam[0], one, scales, mirror)
        for one in image
    ]
    return torch.stack(maps)


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("scales", [(1.0, 0.5, 1.5), (1.0,), (0.7, 1.3)])
def test_values(image, scales, mirror):
    activation = MultiScaleCAM(scales, mirror)(Pooled(), image)
    assert (activation.cam.shape, activation.cam.dtype) == (image.shape, torch.float32)
    torch.testing.assert_close(activation.cam, expected(image, scales, mirror), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scales", [(1.0, 0.5, 1.5), (1.5, 1.0), (1.0, 0.5)])
def test_tokens_are_of_the_largest_scale_and_not_mirrored(image, scales):
    activation = MultiScaleCAM(scales)(Pooled(), image)
    side = int(max(scales) * 24), int(max(scales) * 32)
    plain = Pooled().activate(F.interpolate(image, size=side, mode="bilinear", align_corners=False))
    assert activation.tokens.grid == (side[0] // 4, side[1] // 4)
    torch.testing.assert_close(activation.tokens.queries[0], plain.tokens.queries[0])


def test_a_known_activation_saves_its_pass(image):
    net, known = Pooled(), Pooled().activate(image)
    before = known.cam.clone()
    merged = MultiScaleCAM()(net, image, known)
    assert net.sizes == [(24, 32), (12, 16), (12, 16), (36, 48), (36, 48)]  # scale 1: the mirror image alone
    assert torch.equal(merged.cam, MultiScaleCAM()(Pooled(), image).cam)
    assert torch.equal(known.cam, before)


def test_a_known_activation_serves_no_other_scale(image):
    net = Pooled()
    merged = MultiScaleCAM((0.5,), mirror=False)(net, image, Pooled().activate(image))
    assert net.sizes == [(12, 16)]
    assert merged.tokens.grid == (3, 4)


def test_maps_of_the_image_size_are_not_written_to(image):
    net = Pooled(cell=1)
    known = net.activate(image)
    before = known.cam.clone()
    MultiScaleCAM((1.0,), mirror=False)(net, image, known)
    assert torch.equal(known.cam, before)


@pytest.mark.parametrize("mirror", [True, False])
def test_low_precision_maps_are_merged_in_float32(image, mirror):
    class Half(Pooled):
        def activate(self, image: Tensor) -> Activation:
            activation = super().activate(image)
            return activation._replace(cam=activation.cam.bfloat16())

    merged = MultiScaleCAM(mirror=mirror)(Half(), image).cam
    assert merged.dtype == torch.float32
    for one, cam in zip(image, merged, strict=True):
        rounded = lambda x: Half().activate(x[None]).cam[0].float()  # noqa: E731
        theirs = reference.multi_scale_cam(rounded, one, (1.0, 0.5, 1.5), mirror)
        torch.testing.assert_close(cam, theirs, rtol=0, atol=1e-6)


def test_no_gradient(image):
    assert not MultiScaleCAM()(Pooled(), image.requires_grad_()).cam.requires_grad


def test_normalised_to_the_unit_interval():
    cam = torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    flat = normalize_cam(cam).flatten(2)
    assert flat.amin(2).eq(0).all()
    torch.testing.assert_close(flat.amax(2), torch.ones(2, 4, dtype=torch.float64), rtol=0, atol=1e-6)
    spread = cam.flatten(2).amax(2) - cam.flatten(2).amin(2)
    torch.testing.assert_close(flat.amax(2), spread / (spread + 1e-5))


def test_normalisation_does_not_know_scale_nor_shift():
    cam = torch.rand(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalize_cam(7 * cam + 3), normalize_cam(cam), rtol=0, atol=2e-5)


def test_a_constant_map_is_zero():
    assert torch.equal(normalize_cam(torch.full((1, 2, 3, 3), 4.2)), torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,), (1e9,), (float("nan"),)])
def test_scales_are_checked(scales):
    with pytest.raises(UserError, match="need one or more factors") as error:
        MultiScaleCAM(scales)
    assert "\n" not in str(error.value)


class Projected(nn.Module):
    """A localizer with a product, which autocast runs in bfloat16; it notes the precision of each pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
        self.seen: list[torch.dtype] = []

    def activate(self, image: Tensor) -> Activation:
        tokens = F.avg_pool2d(image, 4).flatten(2).mT @ self.weight
        self.seen.append(tokens.dtype)
        grid = image.shape[-2] // 4, image.shape[-1] // 4
        return Activation(tokens.mT.unflatten(2, grid), AffinityTokens([tokens], [tokens], grid))


def test_passes_in_bfloat16_are_merged_in_float32_and_near(image):
    exact, net = MultiScaleCAM()(Projected(), image), Projected()
    found = MultiScaleCAM(precision="bf16")(net, image)
    assert set(net.seen) == {torch.bfloat16}
    assert found.cam.dtype == torch.float32
    assert not torch.equal(found.cam, exact.cam)
    torch.testing.assert_close(found.cam, exact.cam, rtol=0, atol=0.03)
    assert net.activate(image).cam.dtype == torch.float32  # the rest of a step is not touched


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match="need bf16, or null"):
        MultiScaleCAM(precision="fp8")
