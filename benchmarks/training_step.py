"""Time the parts of a training step, and the slow versions of them in tests/reference.py.

    python benchmarks/training_step.py --threads 1 --cpu-time
    python benchmarks/training_step.py --device cuda --precision bfloat16 --compile --batch 8

The first table has every part as a multiple of the network's own forward and backward pass. The second has
how many times slower the reference is, for one image of another size, as loops take minutes at a full crop.
All parts of a table run in turn, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from timing import Run, Setting, arguments, build, measure, print_table, third_phase
from torch import Tensor

from wsss_afa.cli.allocator import keep_freed_memory
from wsss_afa.losses.affinity import affinity_loss
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.labels import own_classes

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import reference

BASE = "network"
"""The part that the others are multiples of."""


def step_parts(setting: Setting) -> dict[str, Run]:
    """Passes of the network, whole steps of the three phases, and the optimiser's share of them."""
    net, labeler, loss, optimizer, batch = setting
    image = batch["image"]

    def network() -> None:
        optimizer.zero_grad()
        made = net(image)
        (made.class_logits.sum() + made.seg_logits.mean() + made.affinity.mean()).backward()

    def classifier() -> None:
        optimizer.zero_grad()
        net.classify(image).sum().backward()

    def first_phase() -> None:
        optimizer.zero_grad()
        loss.classification(net.classify(image), batch["class_label"]).backward()
        optimizer.step()

    return {
        BASE: network,
        "network, first phase": classifier,
        "step, first phase": first_phase,
        "step, second phase": third_phase(setting, labeler.start_step + 1),
        "step, third phase": third_phase(setting),
        "optimizer": optimizer.step,
    }


@torch.no_grad()
def label_parts(setting: Setting) -> dict[str, Run]:
    """What makes the pseudo labels, piece by piece, with the images' own classes alone."""
    net, labeler, _, _, batch = setting
    output, box = net(batch["image"]), batch["valid_box"]
    channels = own_classes(batch["class_label"]).channels
    classes = own_classes(torch.ones(channels.shape, device=channels.device))
    rgb = to_rgb(batch["image"], labeler.mean, labeler.std)
    activation = labeler.cam(net, batch["image"], output.activation, channels)
    affinity = net.affinity_head(activation.tokens)
    maps = labeler.propagated_maps(activation, affinity, classes)
    parts = {
        "multi-scale CAM": lambda: labeler.cam(net, batch["image"], output.activation, channels),
        "PAR": lambda: labeler.refined_maps(rgb, activation.cam, classes),
        "affinity": lambda: net.affinity_head(activation.tokens),
        "propagation": lambda: labeler.propagated_maps(activation, affinity, classes),
        "PAR in the box": lambda: labeler.refine_in_box(rgb, maps, box),
    }
    return {name: torch.no_grad()(run) for name, run in parts.items()}


def loss_parts(setting: Setting) -> dict[str, Run]:
    """Each term with its gradient, of a third-phase step."""
    net, labeler, loss, _, batch = setting
    output = torch.no_grad()(net)(batch["image"])
    labels = labeler(net, batch, output, labeler.propagation_step + 1)
    logits = output.seg_logits.requires_grad_()
    scores = output.class_logits.requires_grad_()
    pairs = output._replace(affinity_logits=output.affinity_logits.requires_grad_())
    return {
        "loss of classification": lambda: loss.classification(scores, batch["class_label"]).backward(),
        "loss of segmentation": lambda: balanced_cross_entropy(logits, labels.segmentation).backward(),
        "loss of affinity": lambda: loss.affinity(pairs, labels.affinity).backward(),
    }


@torch.no_grad()
def reference_pairs(setting: Setting) -> dict[str, tuple[Run, Run]]:
    """Ours and the slow version of it, of the first image; gradients are left out."""
    net, labeler, _, _, batch = setting
    image, head, par, walk = batch["image"], net.affinity_head, labeler.refine, labeler.propagate
    activation, output = labeler.cam(net, image), net(image)
    tokens, affinity = activation.tokens, head(activation.tokens)
    labels = labeler(net, batch, output, labeler.propagation_step + 1)
    small = torch.rand(1, 3, *(side // 2 for side in image.shape[-2:]))
    coarse = torch.rand(1, 3, *tokens.grid)
    dilations = sorted({max(abs(dy), abs(dx)) for dy, dx in par.offsets})

    def activate(one: Tensor) -> Tensor:
        return net.activate(one[None]).cam[0]

    segmentation, pairs = labels.segmentation, labels.affinity
    parts = {
        "multi-scale CAM": (
            lambda: labeler.cam(net, image),
            lambda: reference.multi_scale_cam(activate, image[0], labeler.cam.scales, labeler.cam.mirror),
        ),
        "PAR": (
            lambda: par(small, small),
            lambda: reference.par(small, small, par.num_iter, dilations),
        ),
        "affinity": (
            lambda: head(tokens),
            lambda: reference.affinity(tokens.queries, tokens.keys, head.weight, head.bias),
        ),
        "propagation": (
            lambda: walk(coarse, affinity),
            lambda: reference.propagate(coarse[0], affinity[0], walk.radius, walk.power, walk.num_log_steps),
        ),
        "loss of segmentation": (
            lambda: balanced_cross_entropy(output.seg_logits, segmentation),
            lambda: reference.balanced_cross_entropy(output.seg_logits, segmentation),
        ),
        "loss of affinity": (
            lambda: affinity_loss(output.affinity, pairs),
            lambda: reference.affinity_loss(output.affinity, pairs),
        ),
    }
    return {name: (torch.no_grad()(ours), torch.no_grad()(slow)) for name, (ours, slow) in parts.items()}


def print_parts(options: Namespace) -> None:
    """Time and print the parts of a step."""
    setting = build(options, options.crop, options.batch, options.classes)
    seconds = measure(step_parts(setting) | label_parts(setting) | loss_parts(setting), options)
    rows = [[name, f"{each:.4f}", f"{each / seconds[BASE]:.3f}"] for name, each in seconds.items()]
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    print_table(f"{where}; {options.batch} images, crop {options.crop}", ["part", "s", "× network"], rows)


def print_references(options: Namespace) -> None:
    """Time and print the slow versions beside ours, on the CPU."""
    crop = options.reference_crop
    pairs = reference_pairs(build(options, crop, 1, options.classes, "cpu"))
    runs = {f"{name} {index}": run for name, both in pairs.items() for index, run in enumerate(both)}
    seconds = measure(runs, Namespace(**vars(options) | {"device": "cpu", "precision": "float32"}))
    rows = []
    for name in pairs:
        ours, slow = seconds[f"{name} 0"], seconds[f"{name} 1"]
        rows.append([name, f"{ours:.4f}", f"{slow:.4f}", f"{slow / ours:.1f}"])
    print_table(f"against tests/reference.py; one image, crop {crop}", ["part", "s", "slow, s", "×"], rows)


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--crop", type=int, default=512, help="side of a crop in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images of a step")
    parser.add_argument("--classes", type=int, default=20, help="foreground classes")
    parser.add_argument("--reference-crop", type=int, default=128, help="crop of the second table")
    options = parser.parse_intermixed_args(words)
    print_parts(options)
    print_references(options)


if __name__ == "__main__":
    keep_freed_memory()  # as training on a CPU does
    main()
