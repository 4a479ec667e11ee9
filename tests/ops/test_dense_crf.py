"""The dense CRF against stored results, pydensecrf2, and sums over all pairs of pixels."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import other_crf
from wsss_afa.errors import UserError
from wsss_afa.ops.dense_crf import DenseCRF, exact_kernel
from wsss_afa.ops.permutohedral import lattice

GOLDEN = Path(__file__).parents[1] / "data" / "refine_a.npz"
VOC = Path(__file__).parents[3] / "shared/data/voc_mini/VOCdevkit/VOC2012"
SMALL = {"gaussian_sxy": 2.0, "bilateral_sxy": 6.0, "bilateral_srgb": 30.0}


def pydensecrf(crf: DenseCRF, rgb: Tensor, prob: Tensor) -> np.ndarray:
    """The compiled program's result (K, H, W) for one image."""
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    return other_crf.pydensecrf(crf, rgb, prob)


def scene(*size: int, num_classes: int = 3, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of a few flat colours with a little noise, and unsure probabilities, never near 0."""
    random = torch.Generator().manual_seed(seed)
    colors = torch.randint(40, 216, (batch, 3, 3, 2), generator=random).float()
    rgb = F.interpolate(colors, size, mode="nearest")
    rgb += torch.randint(-9, 10, rgb.shape, generator=random)
    prob = torch.rand(batch, num_classes, *size, generator=random) + 0.2
    return rgb.to(torch.uint8), prob / prob.sum(1, keepdim=True)


def by_pairs(crf: DenseCRF, rgb: Tensor, prob: Tensor) -> Tensor:
    """Mean field of one image in float64, with the N × N kernels written out."""
    _, num_classes, height, width = prob.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([x, y], -1).reshape(-1, 2).double()
    color = rgb[0].reshape(3, -1).T.double()
    message = torch.zeros(len(color), len(color), dtype=torch.float64)
    features = [position / crf.gaussian_sxy]
    features += [torch.cat([position / crf.bilateral_sxy, color / crf.bilateral_srgb], 1)]
    for of_pixel, weight in zip(features, [crf.gaussian_compat, crf.bilateral_compat], strict=True):
        kernel = (-((of_pixel[:, None] - of_pixel[None]) ** 2).sum(-1) / 2).exp()
        degree = kernel.sum(1)
        message += weight * kernel / (degree[:, None] * degree[None]).sqrt()
    unary = prob[0].reshape(num_classes, -1).T.double().clamp(1e-5, 1).log()
    belief = unary.softmax(1)
    for _ in range(crf.num_iter):
        belief = (unary + message @ belief).softmax(1)
    return belief.T.reshape(prob.shape)


def agreement(refined: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Share of pixels (K, H, W) with the same winner, and of values less than 1e-3 apart."""
    same = refined.argmax(0) == expected.argmax(0)
    return float(same.mean()), float((np.abs(refined - expected) <= 1e-3).mean())


# Results of other programs


@pytest.mark.parametrize("name", ["crf", "crf_voc_common"])
@pytest.mark.parametrize("i", [0, 1])
def test_golden(name, i):
    golden = np.load(GOLDEN)
    of = json.loads(str(golden["meta"]))[name]
    crf = DenseCRF(
        of["iterations"],
        of["gaussian_sxy"],
        of["gaussian_weight"],
        of["bilateral_sxy"],
        of["bilateral_srgb"],
        of["bilateral_weight"],
    )
    rgb = torch.from_numpy(golden[f"{i}/image"]).permute(2, 0, 1)[None]
    refined = crf(rgb, torch.from_numpy(golden[f"{i}/prob"])[None])
    assert min(agreement(refined[0].numpy(), golden[f"{i}/{name}"])) >= 0.999


def blurred(mask: Tensor, num_classes: int) -> Tensor:
    """Probabilities (1, K, H, W) from a mask (H, W) at a sixteenth of its size; unlabelled is background."""
    one_hot = F.one_hot(mask.where(mask != 255, 0).long(), num_classes).permute(2, 0, 1)[None].float()
    coarse = F.adaptive_avg_pool2d(one_hot, [length // 16 for length in mask.shape])
    return F.interpolate(coarse, mask.shape, mode="bilinear")


@pytest.mark.skipif(not VOC.is_dir(), reason="no real photographs beside the checkout")
@pytest.mark.parametrize("at", [0, 120])
@pytest.mark.parametrize("settings", [{}, {"gaussian_sxy": 1, "gaussian_compat": 1, "bilateral_sxy": 121}])
def test_photographs(at, settings):
    path = sorted((VOC / "SegmentationClassAug").glob("*.png"))[at]
    mask = torch.from_numpy(np.array(Image.open(path)))
    photo = np.array(Image.open(VOC / "JPEGImages" / f"{path.stem}.jpg").convert("RGB"))
    rgb, prob = torch.from_numpy(photo).permute(2, 0, 1)[None], blurred(mask, 21)
    assert prob.min() == 0, "some classes are impossible"
    crf = DenseCRF(**settings)
    refined = crf(rgb, prob)[0].numpy()
    assert min(agreement(refined, pydensecrf(crf, rgb, prob))) >= 0.999
    assert (refined.argmax(0) != prob[0].argmax(0).numpy()).mean() > 0.002, "nothing was refined"


SHAPES = {
    "one pixel wide": (37, 1),
    "one pixel high": (1, 40),
    "one pixel": (1, 1),
    "odd": (23, 31),
}


@pytest.mark.parametrize("num_classes", [2, 81])
@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
def test_shapes(size, num_classes):
    crf = DenseCRF(bilateral_srgb=13.0)
    rgb, prob = scene(*size, num_classes=num_classes)
    refined = crf(rgb, prob)
    assert refined.shape == prob.shape
    assert min(agreement(refined[0].numpy(), pydensecrf(crf, rgb, prob))) >= 0.999


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_image_of_one_colour(level):
    crf = DenseCRF()
    _, prob = scene(20, 30)
    rgb = torch.full((1, 3, 20, 30), level, dtype=torch.uint8)
    assert min(agreement(crf(rgb, prob)[0].numpy(), pydensecrf(crf, rgb, prob))) >= 0.999


def test_probabilities_of_0_and_1():
    crf = DenseCRF()
    rgb, prob = scene(16, 24, num_classes=2)
    prob = (prob > 0.5).float()
    refined = crf(rgb, prob)
    assert refined.isfinite().all()
    assert min(agreement(refined[0].numpy(), pydensecrf(crf, rgb, prob))) >= 0.999
    assert DenseCRF(0)(rgb, prob).min().item() == pytest.approx(1e-5, rel=1e-3)


# Sums over all pairs


@pytest.mark.parametrize("size", [(9, 13), (1, 17), (1, 1)])
@pytest.mark.parametrize(
    "settings", [SMALL, {"num_iter": 3, "bilateral_srgb": 5.0}, {"gaussian_compat": 0.0}]
)
def test_exact_is_the_sum_over_all_pairs(size, settings):
    crf = DenseCRF(**settings, kernel="exact")
    rgb, prob = scene(*size, num_classes=4)
    torch.testing.assert_close(crf(rgb, prob).double(), by_pairs(crf, rgb, prob), rtol=0, atol=1e-3)


def test_exact_kernel():
    features = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 2 + 30
    values = torch.rand(300, 21, generator=torch.Generator().manual_seed(1))
    factor = torch.rand(300, generator=torch.Generator().manual_seed(2))
    distance = (features.double()[:, :, None] - features.double()[:, None]).square().sum(0)
    expected = factor[:, None] * ((-distance / 2).exp() @ (factor[:, None] * values).double())
    torch.testing.assert_close(
        exact_kernel(features).scaled(factor)(values).double(), expected, rtol=1e-4, atol=0
    )


def test_exact_never_holds_all_pairs():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **kwargs or {})
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return made

    rgb, prob = scene(32, 40)
    with Largest() as largest:
        DenseCRF(1, kernel="exact")(rgb, prob)
    assert 32 * 40 < largest.numel < 32 * 40 * 20


@pytest.mark.parametrize("kernel", [lattice, exact_kernel])
def test_kernels_are_linear(kernel):
    features = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 3
    matrix = kernel(features)(torch.eye(40))
    assert matrix.min() > -1e-6
    values = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kernel(features)(values), matrix @ values, rtol=1e-4, atol=1e-4)


def test_lattice_is_nearly_the_gaussian():
    """On a line and in a plane, where all points of the lattice are occupied, but for the borders."""
    for features in (torch.arange(0, 40, 0.1)[None], positions(40, 40) / 6):
        centre = features.shape[1] // 2 + (20 if len(features) == 2 else 0)
        values = torch.zeros(features.shape[1], 1)
        values[centre] = 1
        response = lattice(features)(values)[:, 0]
        exact = (-(features - features[:, centre, None]).square().sum(0) / 2).exp()
        scale = response.sum() / exact.sum()
        assert (response / scale - exact).abs().max() < 0.2
        assert torch.corrcoef(torch.stack([response, exact]))[0, 1] > 0.98


def positions(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).flatten(1).float()


# Properties


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_images_do_not_see_each_other(kernel):
    crf = DenseCRF(3, kernel=kernel)
    rgb, prob = scene(12, 15, batch=3)
    together = crf(rgb, prob)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], crf(rgb[i : i + 1], prob[i : i + 1]))


def test_threads_change_nothing():
    rgb, prob = scene(12, 15, batch=3)
    alone = DenseCRF(3)(rgb, prob)
    torch.set_num_threads(2)
    try:
        together = DenseCRF(3)(rgb, prob.requires_grad_())
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(together, alone)
    assert not together.requires_grad


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_classes_commute(kernel):
    crf, order = DenseCRF(3, kernel=kernel), [2, 0, 3, 1]
    rgb, prob = scene(12, 15, num_classes=4)
    torch.testing.assert_close(crf(rgb, prob[:, order]), crf(rgb, prob)[:, order])


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_a_single_class_is_certain(kernel):
    rgb, prob = scene(6, 7, num_classes=1)
    refined = DenseCRF(kernel=kernel)(rgb, prob * 0.3)
    assert torch.equal(refined, torch.ones_like(prob))


def test_it_draws_a_line_where_the_image_does():
    rgb = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    rgb[..., 8:] = 200
    foreground = torch.linspace(0, 1, 20).expand(1, 1, 20, 20)
    refined = DenseCRF()(rgb, torch.cat([1 - foreground, foreground], 1))
    expected = (torch.arange(20) >= 8).expand(1, 20, 20)
    assert torch.equal(refined.argmax(1).bool(), expected)
    assert refined.amax(1).min() > 0.9


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_no_weight_no_change(kernel):
    rgb, prob = scene(8, 9)
    crf = DenseCRF(gaussian_compat=0, bilateral_compat=0, kernel=kernel)
    torch.testing.assert_close(crf(rgb, prob), prob)
    torch.testing.assert_close(DenseCRF(0, kernel=kernel)(rgb, prob), prob)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
@pytest.mark.parametrize("threads", [1, 2])
def test_precision_and_modes(kernel, threads):
    """Half precision in, autocast and inference mode around: computed in float32, without a gradient."""
    rgb, prob = scene(12, 15, batch=2)
    prob = prob.bfloat16()
    expected = DenseCRF(3, kernel=kernel)(rgb, prob.float().requires_grad_())
    assert not expected.requires_grad
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            refined = DenseCRF(3, kernel=kernel)(rgb, prob.clone())
    finally:
        torch.set_num_threads(1)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, expected)


def test_input_is_untouched():
    rgb, prob = scene(8, 9)
    before = rgb.clone(), prob.clone()
    DenseCRF()(rgb, prob)
    assert torch.equal(rgb, before[0])
    assert torch.equal(prob, before[1])


def test_long_codes():
    """Kernels so narrow that 32 bits cannot number the points, and nothing is tied to anything."""
    rgb, prob = scene(30, 40)
    crf = DenseCRF(gaussian_compat=0, bilateral_sxy=0.3, bilateral_srgb=0.3)
    torch.testing.assert_close(crf(rgb, prob).double(), by_pairs(crf, rgb, prob), rtol=0, atol=0.05)


def test_too_long_codes():
    rgb, prob = scene(30, 40)
    with pytest.raises(UserError, match=r"need fewer than 2\^63; raise sxy or srgb"):
        DenseCRF(bilateral_sxy=1e-3, bilateral_srgb=1e-3)(rgb, prob)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "fast"}, "kernel=fast: need one of lattice, exact"),
        ({"bilateral_srgb": 0}, "bilateral_srgb=0: need widths above 0"),
        ({"gaussian_sxy": -1.0}, "gaussian_sxy=-1.0, .* need widths above 0"),
        ({"num_iter": -1}, "num_iter=-1, .* need numbers of at least 0"),
        ({"bilateral_compat": -4.0}, "bilateral_compat=-4.0: need numbers of at least 0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message) as error:
        DenseCRF(**settings)
    assert "\n" not in str(error.value)


def test_one_line_says_all():
    line = DenseCRF(bilateral_sxy=121.0).extra_repr()
    assert line == "10 iterations, Gaussian σ 3 weight 3, bilateral σ_xy 121 σ_rgb 5 weight 4, lattice"


def test_nothing_to_train_nor_to_save():
    assert not list(DenseCRF().parameters())
    assert not DenseCRF().state_dict()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_gpu(kernel):
    rgb, prob = scene(64, 80, num_classes=21, batch=2)
    crf = DenseCRF(kernel=kernel)
    with torch.autocast("cuda"):
        refined = crf(rgb.cuda(), prob.cuda())
    assert refined.is_cuda
    for i in range(2):
        assert min(agreement(refined[i].cpu().numpy(), crf(rgb, prob)[i].numpy())) >= 0.999
