"""Triton's kernels of the refinement against the plain path.

Without a GPU, Triton interprets kernels. It has to know when it is imported, so that happens in another
process, which is this file as a program; and it compiles them, which tells what a GPU would take.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from wsss_afa.ops import par as par_module
from wsss_afa.ops.par import PixelAdaptiveRefinement

DILATIONS = (1, 2, 4, 8, 12, 24)
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Case(NamedTuple):
    """Shapes and settings of one refinement."""

    size: tuple[int, int]
    num_maps: int
    dilations: tuple[int, ...] = DILATIONS
    extent: list[tuple[int, int]] | None = None
    num_iter: int = 2
    dtype: torch.dtype = torch.float32
    strided: bool = False


CASES = {
    "two blocks": Case((13, 11), 6, (1, 12)),
    "extent": Case((11, 7), 6, extent=[(9, 7), (11, 4)]),
    "extent of a row and a pixel": Case((6, 5), 2, (1, 3), extent=[(1, 3), (1, 1)]),
    "one pixel wide": Case((9, 1), 1, (1, 4, 24)),
    "one pixel high": Case((1, 7), 3, (2, 1)),
    "one pixel": Case((1, 1), 1, (1,)),
    "42 maps": Case((5, 4), 42, (1, 2)),
    "far beyond the border": Case((6, 7), 2, (40, 1)),
    "float16": Case((6, 7), 2, (1,), dtype=torch.float16),
    "no iteration": Case((6, 7), 2, (1,), num_iter=0),
    "strided": Case((6, 7), 3, (1, 2), extent=[(6, 7), (4, 2)], strided=True),
}
GPU_CASES = CASES | {
    "training": Case((256, 256), 6, num_iter=10),
    "training, extent": Case((256, 256), 6, extent=[(256, 200), (90, 256)], num_iter=10),
    "many": Case((123, 77), 42, num_iter=15),
}


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor | None]:
    """Two images with flat parts, their maps and extents, in the case's precision."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, *case.size, generator=random).mul(255).round().div(255)
    image[:, :, : case.size[0] // 3, : case.size[1] // 2] = 0.25
    maps = torch.rand(2, case.num_maps, *case.size, generator=random)
    extent = None if case.extent is None else torch.tensor(case.extent)
    if case.strided:
        image, maps = image.mT.contiguous().mT, maps.transpose(0, 1).contiguous().transpose(0, 1)
        extent = None if extent is None else extent.T.contiguous().T
    return image.to(case.dtype), maps.to(case.dtype), extent


def check(refined: Tensor, case: Case) -> None:
    """The kernels may err twice as much as the plain path in float32, and by a rounding an iteration."""
    image, maps, extent = inputs(case)
    par = PixelAdaptiveRefinement(case.num_iter, case.dilations)
    exact = par(image.double(), maps.double(), extent)
    plain = par(image.float(), maps.float(), extent)
    assert refined.dtype == torch.float32
    assert refined.shape == maps.shape
    rounding = case.num_iter * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (refined - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


def main(path: str) -> None:
    """Refine every case by the interpreter, through the Module that takes kernels as if for a GPU."""
    torch.set_num_threads(1)
    par_module._suits_triton = lambda image, maps: True
    results = {}
    for name, case in CASES.items():
        image, maps, extent = inputs(case)
        before = maps.clone()
        results[name] = PixelAdaptiveRefinement(case.num_iter, case.dilations)(image, maps, extent)
        assert torch.equal(maps, before), "maps were written to"
    torch.save(results, path)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("triton") / "refined.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = [sys.executable, "-W", "error", __file__, str(path)]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(path, weights_only=True)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_values(interpreted, name):
    check(interpreted[name], CASES[name])


ONE_PIXEL = ("height", "width", "num_dilations", "num_maps", "groups")


@needs_triton
@pytest.mark.parametrize(
    ("arch", "extent", "ones"), [(75, None, ()), (90, "*i64", ("groups",)), (90, None, ONE_PIXEL)]
)
def test_compiles(tmp_path, monkeypatch, arch, extent, ones):
    """For GPUs, with what is 1 as a constant, as Triton has it.

    Where every load has one layout, nothing goes through shared memory between a load and its use.
    """
    pytest.importorskip("triton", minversion="3.3")  # names constants in signatures
    import triton
    from triton.backends.compiler import GPUTarget

    from wsss_afa.ops import par_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"group": 8, "block": 128} | dict.fromkeys(ones, 1) | ({} if extent else {"extent": None})
    kinds = {"dilations": "*i32", "extent": extent, "color_width": "fp32"}
    pointers = {"image", "position", "weights", "maps", "refined"}
    for kernel in (par_triton._weigh, par_triton._average):
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {
            name: "*fp32" if name in pointers else kinds.get(name, "i32") for name in kernel.arg_names
        }
        source = triton.compiler.ASTSource(kernel, signature | dict.fromkeys(own, "constexpr"), own)
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32))
        assert ones == ONE_PIXEL or "convert_layout" not in compiled.asm["ttgir"]


@needs_triton
def test_a_device_that_fails_is_told_once():
    from wsss_afa.ops import par_triton

    par_triton.works_on.cache_clear()
    with pytest.warns(UserWarning, match="refinement without Triton, which fails on cpu"):
        assert not par_triton.works_on(torch.device("cpu"))
    assert not par_triton.works_on(torch.device("cpu"))


@pytest.mark.parametrize("block", ["", "sys.modules['triton'] = None"])
def test_triton_is_needed_nowhere(block):
    code = (
        f"import sys, torch\n{block}\n"
        "from wsss_afa.ops.par import PixelAdaptiveRefinement\n"
        "PixelAdaptiveRefinement(1, (1,))(torch.rand(1, 3, 4, 4), torch.rand(1, 1, 4, 4))\n"
        "assert 'wsss_afa.ops.par_triton' not in sys.modules\n"
        "from wsss_afa.ops import par_triton\n"
        "assert sys.modules['triton'] or not par_triton.works_on(torch.device('cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_plain_path_raises_half_precision(dtype):
    image, maps, _ = inputs(Case((6, 7), 2, dtype=dtype))
    par = PixelAdaptiveRefinement(2)
    torch.testing.assert_close(par(image, maps), par(image.float(), maps.float()), rtol=0, atol=0)


def test_plain_path_has_the_maps_gradient():
    image, maps, extent = inputs(Case((4, 3), 2, (1, 2), extent=[(4, 3), (3, 2)]))
    par = PixelAdaptiveRefinement(2, (1, 2))
    assert torch.autograd.gradcheck(lambda m: par(image.double(), m, extent), maps.double().requires_grad_())


@pytest.mark.gpu
@needs_triton
@needs_gpu
@pytest.mark.parametrize("name", GPU_CASES)
def test_values_on_a_gpu(name):
    from wsss_afa.ops import par_triton

    image, maps, extent = (None if x is None else x.cuda() for x in inputs(GPU_CASES[name]))
    par = PixelAdaptiveRefinement(GPU_CASES[name].num_iter, GPU_CASES[name].dilations).cuda()
    assert par_triton.works_on(maps.device)
    check(par(image, maps, extent).cpu(), GPU_CASES[name])


@pytest.mark.gpu
@needs_gpu
def test_gradients_and_float64_take_the_plain_path():
    image, maps, _ = (x if x is None else x.cuda() for x in inputs(Case((6, 7), 2)))
    par = PixelAdaptiveRefinement(2).cuda()
    assert par(image, maps.requires_grad_()).requires_grad
    assert par(image.double(), maps.double()).dtype == torch.float64


if __name__ == "__main__":
    main(sys.argv[1])
