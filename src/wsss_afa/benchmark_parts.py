"""What the benchmark times: the network, whole steps, what makes pseudo labels, loading; and the ceilings.

Arithmetic is what a forward pass multiplies and adds, counted by torch, and twice that for a backward pass.
Bytes of PAR are its weights and maps, each read or written once an iteration. The dense CRF, which an
evaluation may run after the network, is timed as well.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wsss_afa.data.images import read_image
from wsss_afa.data.transforms import TrainTransform
from wsss_afa.methods.afa.loss import AFALoss
from wsss_afa.methods.afa.network import AFANet
from wsss_afa.ops.dense_crf import DenseCRF
from wsss_afa.methods.afa.pseudo_labels import PseudoLabeler
from wsss_afa.ops.labels import own_classes
from wsss_afa.ops.images import to_rgb
from wsss_afa.types import AFAOutput, Batch
from wsss_afa.errors import UserError

BASE = "forward + backward"
"""The part that the others are multiples of."""
Run = Callable[[], Any]


class Part(NamedTuple):
    """Something to time."""

    run: Run
    """Does the whole of the part."""
    flops: float = 0.0
    """Arithmetic of one run; 0 where it is not what counts."""
    bytes: float = 0.0
    """Least memory traffic of one run; 0 where it is not what counts."""
    reference: Run | None = None
    """The same by the slow reference."""
    items: int = 1
    """How many things one run does, such as images."""


def random_batch(batch_size: int, crop_size: int, num_classes: int, device: torch.device) -> Batch:
    """Noise of a batch's form, two tags an image, a box with a margin."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.zeros(batch_size, num_classes)
    tags.scatter_(1, torch.randint(num_classes, (batch_size, 2), generator=generator), 1.0)
    margin = crop_size // 16
    box = torch.tensor([[margin, crop_size - margin, 0, crop_size]]).repeat(batch_size, 1)
    return {
        "image": torch.randn(batch_size, 3, crop_size, crop_size, generator=generator).to(device),
        "class_label": tags.to(device),
        "valid_box": box.to(device),
        "name": [""] * batch_size,
    }


def step_parts(
    net: AFANet, labeler: PseudoLabeler, loss: AFALoss, batch: Batch, count: bool = True
) -> dict[str, Part]:
    """The network's own pass, and whole steps of the three phases without the optimiser.

    Args:
        net: in training mode.
        labeler: makes the pseudo labels.
        loss: sums the terms.
        batch: what the steps are given.
        count: whether to count arithmetic, which takes a pass and the memory of plain attention.
    """
    image = batch["image"]
    flops = 3 * _flops(lambda: net(image)) if count else 0.0
    first = 3 * _flops(lambda: net.classify(image)) if count else 0.0

    def network() -> None:
        net.zero_grad()
        made = net(image)
        torch.autograd.backward(made.class_logits.sum() + made.seg_logits.mean() + made.affinity.mean())

    def classify() -> None:
        net.zero_grad()
        torch.autograd.backward(net.classify(image).sum())

    def step(at: int) -> Run:
        def run() -> None:
            net.zero_grad()
            made: AFAOutput = net(image)
            torch.autograd.backward(loss(made, batch, labeler(net, batch, made, at))["total"])

        return run

    return {
        BASE: Part(network, flops=flops),
        "step, first phase": Part(classify, flops=first),
        "step, second phase": Part(step(labeler.start_step + 1)),
        "step, third phase": Part(step(labeler.propagation_step + 1)),
    }


def label_parts(
    net: AFANet, labeler: PseudoLabeler, batch: Batch, slow: ModuleType | None
) -> dict[str, Part]:
    """What makes the pseudo labels, piece by piece, with the classes of the images alone."""
    output: AFAOutput = net(batch["image"])
    channels = own_classes(batch["class_label"]).channels
    tags = torch.ones(channels.shape, device=channels.device)
    classes, box = own_classes(tags), batch["valid_box"]
    rgb = to_rgb(batch["image"], labeler.mean, labeler.std)

    def localize() -> Any:
        return labeler.cam(net, batch["image"], output.activation, channels)

    activation = localize()
    affinity = net.affinity_head(activation.tokens).detach()
    maps = labeler.propagated_maps(activation, affinity, classes)
    head, tokens = net.affinity_head, activation.tokens
    per_head = (lambda: slow.affinity(tokens.queries, tokens.keys, head.weight, head.bias)) if slow else None
    parts = {
        "multi-scale CAM": Part(localize, flops=_flops(localize)),
        "PAR label": Part(lambda: labeler.refined_maps(rgb, activation.cam, classes)),
        "large affinity": Part(lambda: head(tokens), flops=_flops(lambda: head(tokens)), reference=per_head),
        "propagation": Part(lambda: labeler.propagated_maps(activation, affinity, classes)),
        "PAR in the box": Part(lambda: labeler.refine_in_box(rgb, maps, box)),
    }
    return {name: part._replace(run=torch.no_grad()(part.run)) for name, part in parts.items()}


def par_part(
    labeler: PseudoLabeler, size: int, device: torch.device, slow: ModuleType | None, num_maps: int = 3
) -> Part:
    """PAR alone, of one image."""
    par = labeler.refine
    assert par is not None
    image = torch.rand(1, 3, size, size, device=device)
    maps = torch.rand(1, num_maps, size, size, device=device)
    dilations = sorted({max(abs(dy), abs(dx)) for dy, dx in par.offsets})
    traffic = 4.0 * size**2 * (len(par.offsets) + 2 * num_maps) * par.num_iter
    reference = (lambda: slow.par(image, maps, par.num_iter, dilations)) if slow else None
    return Part(torch.no_grad()(lambda: par(image, maps)), bytes=traffic, reference=reference)


def crf_part(num_channels: int, size: int, device: torch.device) -> Part:
    """The dense CRF of one picture, smooth as photographs mostly are, with all classes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3 + num_channels, 8, 8, generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bilinear").to(device)
    rgb, prob, crf = fine[:, :3].mul(255).to(torch.uint8), fine[:, 3:].softmax(1), DenseCRF()
    return Part(lambda: crf(rgb, prob))


def loading_part(folder: str, crop_size: int) -> Part:
    """One training crop from a JPEG file: decode, rescale, mirror, cut, normalise; on one core.

    Raises:
        UserError: The folder has no JPEG.
    """
    files = sorted(Path(folder).expanduser().glob("*.jpg"))
    if not files:
        raise UserError(f"photos={folder} has no *.jpg: give a folder of photographs, or null")
    transform, draws = TrainTransform(crop_size), itertools.count()
    count = min(64, len(files))

    def run() -> None:
        for file in files[:count]:
            transform(read_image(file), next(draws))

    return Part(run, items=count)


def ceilings(device: torch.device) -> dict[str, Part]:
    """A plain matrix product and a plain copy: what the machine can do."""
    side, count = 1024, 2**25
    left, right = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    source, target = torch.rand(count, device=device), torch.empty(count, device=device)
    return {
        "matrix product": Part(lambda: left @ right, flops=2.0 * side**3),
        "copy": Part(lambda: target.copy_(source), bytes=8.0 * count),
    }


def load_reference(path: str | None) -> ModuleType | None:
    """The module of slow versions, if there is one.

    Raises:
        UserError: There is no such file.
    """
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("reference", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UserError(f"reference={path}: no such file; give tests/reference.py of a checkout, or null")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(run: Run) -> float:
    """Arithmetic of a forward pass; attention is counted as the products that it stands for."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return float(counter.get_total_flops())
