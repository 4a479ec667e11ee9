"""Time a training step of ToCo and of MoRe against their network's own forward and backward pass.

    python benchmarks/token_methods.py --threads 2 --crop 448 --batch 2
    python benchmarks/token_methods.py --device cuda --precision bfloat16 --crop 448 --batch 4

The network's pass is that of the images alone: encoder, both classifiers and the decoder, with the gradient.
A step of ToCo passes its views too: the global view with the images, and local crops. What this saves against
a pass of its own for images, for both views of the teacher and for those of the student, as the authors'
program has it, is the last row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import Run, Setting, arguments, build, measure, print_table, step_of

METHODS = ("toco", "more")


def network_pass(setting: Setting) -> Run:
    """Forward and backward of the images through everything that is trained on them."""
    method, optimizer, batch = setting

    def run() -> None:
        optimizer.zero_grad()
        levels = method.net.encode(batch["image"])
        logits, aux_logits = method.net.class_logits(levels)
        (logits.sum() + aux_logits.sum() + method.net.decoder([levels.last]).mean()).backward()

    return run


def separate_passes(setting: Setting) -> Run:
    """The passes that the authors' program makes of image and global view, where one is enough."""
    method, optimizer, batch = setting
    both = torch.cat([batch["image"], batch["views"]["global"]])

    def run() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            method.net.activate(batch["image"])  # the map of scale 1
        method.net.encode(both)  # for the teacher, with a graph that is not used
        levels, tokens = method.net.encode(batch["image"]), method.net.class_tokens(both)
        (levels.last.mean() + levels.aux.mean() + tokens.mean()).backward()

    return run


def one_pass(setting: Setting) -> Run:
    """The pass that stands for them."""
    method, optimizer, batch = setting
    both = torch.cat([batch["image"], batch["views"]["global"]])

    def run() -> None:
        optimizer.zero_grad()
        levels = method.net.encode(both)
        own = levels.first(len(batch["image"]))
        method.net.activation(own)
        (own.last.mean() + own.aux.mean() + levels.leading[:, 0].mean()).backward()

    return run


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each method."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, value in {"crop": 448, "batch": 2, "classes": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    options = parser.parse_intermixed_args(words)
    given = options.overrides
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    for name in METHODS:
        options.overrides = [f"method={name}", *given]
        setting = build(options, options.crop, options.batch, options.classes)
        method = setting[0]
        parts = {"network": network_pass(setting)}
        parts |= {f"step, {phase.name}": step_of(setting, phase.first) for phase in method.phases}
        if name == "toco":
            parts |= {
                "image and view in one pass": one_pass(setting),
                "in the passes of the program": separate_passes(setting),
            }
        seconds = measure(parts, options)
        rows = [[part, f"{each:.4f}", f"{each / seconds['network']:.2f}"] for part, each in seconds.items()]
        title = f"{name}, {where}; {options.batch} images, crop {options.crop}"
        print_table(title, ["part", "s", "× network"], rows)


if __name__ == "__main__":
    main()
