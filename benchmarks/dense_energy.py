"""Time the dense energy with its gradient, by every kernel, against the network's own pass and a whole step.

    python benchmarks/dense_energy.py --threads 1 --photos DIR
    python benchmarks/dense_energy.py --threads 1 --crop 224 --batch 1 --full

Images are smooth noise, or photographs of a folder: the time of the exact sum depends on how many pixels have
like colours. ``--full`` also sums over all pairs by the full matrix, which takes minutes at crop 512.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timing import Run, arguments, build, measure, print_table, step_of
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from training_step import BASE, step_parts

import wsss_afa.losses.dense_energy as dense_energy
from wsss_afa.cli.memory import keep_freed_memory
from wsss_afa.ops.gaussian_sum import all_pairs


def pictures(options: Namespace) -> Tensor:
    """Images (B, 3, crop, crop) in [0, 1]."""
    shape = (options.crop, options.crop)
    if options.photos is None:
        coarse = torch.randn(options.batch, 3, options.crop // 32 + 1, options.crop // 32 + 1)
        smooth = F.interpolate(coarse, shape, mode="bicubic")
        return ((smooth + 0.1 * torch.randn_like(smooth)) / 4 + 0.5).clamp(0, 1)
    files = sorted(options.photos.glob("*.jpg"))[: options.batch]
    cut = [ImageOps.fit(Image.open(file).convert("RGB"), shape) for file in files]
    return torch.stack([pil_to_tensor(each) for each in cut]) / 255


def energies(options: Namespace) -> dict[str, Run]:
    """Energy and gradient of the same images by each way."""
    rgb, side = pictures(options).to(options.device), options.crop
    coarse = 3 * torch.randn(len(rgb), options.classes + 1, side // 64, side // 64, device=options.device)
    logits = F.interpolate(coarse, (side // 4, side // 4), mode="bilinear").requires_grad_()
    label = torch.zeros(len(rgb), side, side, dtype=torch.long, device=options.device)
    label[:, ::2] = 255
    box = torch.tensor([[0, side, 0, side]] * len(rgb), device=options.device)

    def run(kernel: str) -> Tensor:
        loss = dense_energy.DenseEnergyLoss(kernel=kernel)(logits, rgb, label, box)
        return torch.autograd.grad(loss, logits)[0]

    def full() -> Tensor:
        tiled = dense_energy.gaussian_sum
        dense_energy.gaussian_sum = lambda features, values, tile: all_pairs(features, values, 1024)
        try:
            return run("exact")
        finally:
            dense_energy.gaussian_sum = tiled

    found = {"L_reg, exact": lambda: run("exact"), "L_reg, lattice": lambda: run("lattice")}
    return found | ({"L_reg, full matrix": full} if options.full else {})


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, and how far the gradients are from those of the first way."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, value in {"crop": 512, "batch": 2, "classes": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    parser.add_argument("--photos", type=Path, help="folder of photographs (*.jpg)")
    parser.add_argument("--full", action="store_true", help="also sum over all pairs by the full matrix")
    options = parser.parse_intermixed_args(words)
    torch.manual_seed(0)
    setting, ways = build(options, options.crop, options.batch, options.classes), energies(options)
    parts = {BASE: step_parts(setting)[BASE], "step": step_of(setting)}
    seconds = measure(parts | ways, options)
    gradients = {name: run() for name, run in ways.items()}
    first = next(iter(gradients.values())).flatten()
    rows = []
    for name, each in seconds.items():
        cells = [f"{each:.3f}", f"{each / seconds[BASE]:.2f}", f"{each / seconds['step']:.2f}"]
        if name in gradients:
            own = gradients[name].flatten()
            cells.append(f"{(own - first).norm() / first.norm():.1e}")
            cells.append(f"{F.cosine_similarity(own, first, 0):.5f}")
        rows.append([name, *cells, *[""] * (5 - len(cells))])
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    headers = ["part", "s", "× network", "× step", "gradient differs by", "cosine"]
    print_table(f"{where}; {options.batch} images, crop {options.crop}", headers, rows)


if __name__ == "__main__":
    keep_freed_memory()  # as training on a CPU does
    main()
