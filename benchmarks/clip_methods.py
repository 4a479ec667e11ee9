"""Time training steps on a frozen CLIP against its forward pass, and labels without training.

    python benchmarks/clip_methods.py --threads 1 --crop 320 --batch 1
    python benchmarks/clip_methods.py --device cuda --precision bfloat16 --crop 320 --batch 4

The first tables have a step of each phase of a method as multiples of the tower's pass. The last is of
``method=clip_es``: what the label of an image is made of, GradCAM in closed form beside the way of the
authors' programs, a forward and a backward pass of the last block for each class, weights included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timing import Run, Setting, arguments, build, measure, print_table, step_of

from wsss_afa.ops.grad_cam import softmax_grad_cam
from wsss_afa.ops.labels import OwnClasses

METHODS = ("weclip", "weclip_plus", "excel")


def tower_pass(setting: Setting) -> Run:
    """All blocks of CLIP, without a gradient."""
    method, _, batch = setting

    def run() -> None:
        with torch.no_grad():
            method.net.backbone(batch["image"])

    return run


def own(batch: Any, count: int) -> OwnClasses:
    """The first classes, as many as wanted, of every image."""
    ids = torch.arange(count + 1, device=batch["image"].device).expand(len(batch["image"]), -1)
    return OwnClasses(ids, torch.ones_like(ids, dtype=torch.bool))


def per_class(net: Any, tokens: torch.Tensor, count: int) -> None:
    """GradCAM of classes one after the other by autograd, with gradients of the block's weights."""
    block, rows = net.backbone.blocks[-1], torch.cat([net.texts, net.scenes])
    for index in range(count):
        block.requires_grad_(True)
        normed = block.norm1(tokens)
        normed.retain_grad()
        middle = tokens + block.attn(normed)
        output = middle + block.mlp(block.norm2(middle))
        feature = net.backbone.head(net.backbone.norm(output)[:, 1:].mean(1))
        scores = (net.logit_scale * torch.nn.functional.normalize(feature, dim=-1) @ rows.T).softmax(-1)
        scores[:, index].sum().backward()
        weights = normed.grad[:, 1:].mean(1, keepdim=True)
        (normed.detach()[:, 1:] @ weights.mT).relu()
        block.zero_grad(set_to_none=True)
        block.requires_grad_(False)


def label_parts(setting: Setting, counts: Sequence[int]) -> dict[str, Run]:
    """What the label of an image is made of, with so many classes; the last block in both ways."""
    method, _, batch = setting
    net, image = method.net, batch["image"]
    encoded = net.encode(image, method.layers)
    tokens, grid = net.tokens_of(encoded, net.cam_input), tuple(encoded.maps[0].shape[-2:])
    last = (
        net.backbone.blocks[-1],
        net.backbone.norm,
        net.backbone.head,
        tokens,
        grid,
        net.texts,
        net.scenes,
    )
    classes = own(batch, counts[0])
    carried = method.labeler.carried(net, encoded, classes)
    parts: dict[str, Run] = {"blocks before the last": lambda: net.encode(image, method.layers)}
    for count in counts:
        some = own(batch, count)
        parts[f"GradCAM of {count}, closed form"] = lambda some=some: softmax_grad_cam(*last, some)
        parts[f"GradCAM of {count}, class by class"] = lambda count=count: per_class(net, tokens, count)
    parts["GradCAM and walk"] = lambda: method.labeler.carried(net, encoded, classes)
    parts["PAR"] = lambda: method.labeler.scores(image, carried, classes)
    tags = torch.zeros_like(batch["class_label"])
    tags[:, : counts[0]] = 1
    tagged = {**batch, "class_label": tags}
    for source in method.sources:
        parts[f"label, source={source}"] = lambda source=source: method.maps(tagged, source, ())[0].argmax(1)
    return parts


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each method, and one for labels without training."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, value in {"crop": 320, "batch": 1, "classes": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    options = parser.parse_intermixed_args(words)
    given = options.overrides
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    title = f"{where}; {options.batch} images, crop {options.crop}"
    for name in METHODS:
        dino = ["method.dino.pretrained=null"] if name == "weclip_plus" else []
        options.overrides = [f"method={name}", "method.texts.pretrained=null", *dino, *given]
        setting = build(options, options.crop, options.batch, options.classes)
        parts = {"tower": tower_pass(setting)}
        parts |= {f"step, {phase.name}": step_of(setting, phase.first) for phase in setting[0].phases}
        seconds = measure(parts, options)
        rows = [[part, f"{each:.4f}", f"{each / seconds['tower']:.2f}"] for part, each in seconds.items()]
        print_table(f"{name}, {title}", ["part", "s", "× tower"], rows)
    options.overrides = ["method=clip_es", "method.texts.pretrained=null", *given]
    setting = build(options, options.crop, options.batch, options.classes)
    setting[0].eval()
    with torch.no_grad():
        parts = label_parts(setting, range(1, min(3, options.classes) + 1))
    seconds = measure(parts, options)
    rows = [[part, f"{each:.4f}", f"{options.batch / each:.2f}"] for part, each in seconds.items()]
    print_table(f"clip_es, {title}", ["part", "s", "images/s"], rows)


if __name__ == "__main__":
    main()
