"""Time the parts of a training step of AFA, and the slow versions of them in tests/support/reference.py.

    python benchmarks/training_step.py --threads 1 --cpu-time
    python benchmarks/training_step.py --device cuda --precision bfloat16 --compile --batch 8

The first table has every part as a multiple of the network's own forward and backward pass, the second how
many times slower the reference is, of one small image. The parts of a table run in turn.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from timing import Run, Setting, arguments, build, measure, print_table, step_of

from wsss_afa.cli.memory import keep_freed_memory
from wsss_afa.losses.segmentation import balanced_cross_entropy
from wsss_afa.ops.images import to_rgb
from wsss_afa.ops.labels import own_classes

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import reference

BASE = "network"
"""The part that the others are multiples of."""


def step_parts(setting: Setting) -> dict[str, Run]:
    """The network's pass, a whole step of each phase, and the optimiser's share of them."""
    method, optimizer, batch = setting

    def network() -> None:
        optimizer.zero_grad()
        made = method.net(batch["image"])
        (made.class_logits.sum() + made.seg_logits.mean() + made.affinity.mean()).backward()

    steps = {f"step, {phase.name}": step_of(setting, phase.first) for phase in method.phases}
    return {BASE: network, **steps, "optimizer": optimizer.step}


@torch.no_grad()
def label_parts(setting: Setting) -> dict[str, Run]:
    """What makes the pseudo labels, piece by piece, with the images' own classes alone."""
    method, _, batch = setting
    net, labeler, output = method.net, method.labeler, method.net(batch["image"])
    channels = own_classes(batch["class_label"]).channels
    classes = own_classes(torch.ones(channels.shape, device=channels.device))
    rgb = to_rgb(batch["image"], labeler.mean, labeler.std)
    activation = labeler.cam(net, batch["image"], output.activation, channels)
    affinity = net.affinity_head(activation.tokens)
    maps = labeler.propagated_maps(activation, affinity, classes)
    parts = {
        "multi-scale CAM": lambda: labeler.cam(net, batch["image"], output.activation, channels),
        "PAR": lambda: labeler.refined.maps(rgb, activation.cam, classes),
        "affinity": lambda: net.affinity_head(activation.tokens),
        "propagation": lambda: labeler.propagated_maps(activation, affinity, classes),
        "PAR in the box": lambda: labeler.refined.maps_in_box(rgb, maps, batch["valid_box"]),
    }
    return {name: torch.no_grad()(run) for name, run in parts.items()}


def loss_parts(setting: Setting) -> dict[str, Run]:
    """Each term with its gradient, of a step of the last phase."""
    method, _, batch = setting
    output = torch.no_grad()(method.net)(batch["image"])
    labels = method.labeler(method.net, batch, output, propagating=True)
    scores, logits, pairs = (
        each.requires_grad_() for each in (output.class_logits, output.seg_logits, output.affinity_logits)
    )
    return {
        "loss of classification": lambda: method.classification(scores, batch["class_label"]).backward(),
        "loss of segmentation": lambda: balanced_cross_entropy(logits, labels.segmentation).backward(),
        "loss of affinity": lambda: method.affinity(pairs, labels.affinity).backward(),
    }


@torch.no_grad()
def reference_pairs(setting: Setting) -> dict[str, tuple[Run, Run]]:
    """Ours and the slow version of it, of the first image; gradients are left out."""
    net, labeler, image = setting[0].net, setting[0].labeler, setting[2]["image"]
    head, par, walk, cam = net.affinity_head, labeler.refined.refine, labeler.propagate, labeler.cam
    tokens = cam(net, image).tokens
    affinity = head(tokens)
    small = torch.rand(1, 3, *(side // 2 for side in image.shape[-2:]))
    coarse = torch.rand(1, 3, *tokens.grid)
    dilations = sorted({max(abs(dy), abs(dx)) for dy, dx in par.offsets})
    of_cam = (lambda one: net.activate(one[None]).cam[0], image[0], cam.scales, cam.mirror)
    queries, keys = ([each.float() for each in kind] for kind in (tokens.queries, tokens.keys))
    of_head = (queries, keys, head.weight, head.bias)
    of_walk = (coarse[0], affinity[0], walk.radius, walk.power, walk.num_log_steps)
    return {
        "multi-scale CAM": (lambda: cam(net, image), lambda: reference.multi_scale_cam(*of_cam)),
        "PAR": (lambda: par(small, small), lambda: reference.par(small, small, par.num_iter, dilations)),
        "affinity": (lambda: head(tokens), lambda: reference.affinity(*of_head)),
        "propagation": (lambda: walk(coarse, affinity), lambda: reference.propagate(*of_walk)),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables; the second is of the CPU."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, value in {"crop": 512, "batch": 2, "classes": 20, "reference-crop": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    options = parser.parse_intermixed_args(words)
    setting = build(options, options.crop, options.batch, options.classes)
    seconds = measure(step_parts(setting) | label_parts(setting) | loss_parts(setting), options)
    rows = [[name, f"{each:.4f}", f"{each / seconds[BASE]:.3f}"] for name, each in seconds.items()]
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    print_table(f"{where}; {options.batch} images, crop {options.crop}", ["part", "s", "× network"], rows)

    options, crop = (
        Namespace(**vars(options) | {"device": "cpu", "precision": "float32"}),
        options.reference_crop,
    )
    pairs = reference_pairs(build(options, crop, 1, options.classes))
    runs = {(name, i): torch.no_grad()(run) for name, both in pairs.items() for i, run in enumerate(both)}
    seconds = measure(runs, options)
    times = [(name, seconds[name, 0], seconds[name, 1]) for name in pairs]
    rows = [[name, f"{ours:.4f}", f"{slow:.4f}", f"{slow / ours:.1f}"] for name, ours, slow in times]
    print_table(f"against the reference; one image, crop {crop}", ["part", "s", "slow, s", "×"], rows)


if __name__ == "__main__":
    keep_freed_memory()  # as training on a CPU does
    main()
