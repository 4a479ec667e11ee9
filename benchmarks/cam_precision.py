"""What bfloat16 in the passes of the activation maps changes, and what it saves.

    python benchmarks/cam_precision.py FILE.ckpt data=synthetic --images 60      # labels of a trained network
    python benchmarks/cam_precision.py - --threads 1 --cpu-time                  # times of a random one

The first form makes the labels of a checkpoint's maps with ``method.cam.precision`` null and bf16, in float32
otherwise: the share of pixels whose training label differs (class, background or ignored), and both mIoU of
the label at the middle background score. The second times steps of the last phase, and what they are made of.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from itertools import islice

import hydra
import torch
from hydra.utils import instantiate
from timing import Run, Setting, arguments, build, measure, print_table, step_of
from torch import Tensor
from training_step import BASE, label_parts, step_parts

from wsss_afa.cli.memory import keep_freed_memory
from wsss_afa.files import CONFIG_DIR
from wsss_afa.inference.label_source import LabelSource, merge_labels
from wsss_afa.inference.open_method import open_method
from wsss_afa.methods.base import Method
from wsss_afa.ops.metrics import SegmentationMetrics

PRECISIONS = (None, "bf16")


@torch.no_grad()
def compare_labels(ckpt: str, options: Namespace) -> None:
    """Print a row for each source of labels."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        cfg = hydra.compose("evaluate", [f"ckpt={ckpt}", "protocol=plain", *options.overrides])
    data, protocol = instantiate(cfg.data), instantiate(cfg.protocol)
    method = open_method(ckpt, (), None, data, options.overrides).eval()
    data.setup("validate")
    sources = {each: LabelSource(method, each, protocol) for each in method.sources}
    scores = {
        key: SegmentationMetrics(method.num_classes + 1)
        for key in ((s, p) for s in sources for p in PRECISIONS)
    }
    changed, pixels = dict.fromkeys(sources, 0), 0
    for batch in islice(data.val_dataloader(), options.images):
        pixels += batch["mask"].numel()
        for name, source in sources.items():
            labels = {
                each: training_label(method, source, batch, each, scores[name, each]) for each in PRECISIONS
            }
            changed[name] += int((labels[None] != labels["bf16"]).sum())
    rows = [
        [
            name,
            f"{changed[name] / pixels:.4%}",
            *(f"{100 * scores[name, p].compute()['miou']:.2f}" for p in PRECISIONS),
        ]
        for name in sources
    ]
    print_table(f"labels of {ckpt}", ["source", "pixels that change", "mIoU float32", "bf16"], rows)


def training_label(
    method: Method,
    source: LabelSource,
    batch: dict[str, Tensor],
    precision: str | None,
    score: SegmentationMetrics,
) -> Tensor:
    """The label of low and high background score; that of their mean goes to the score."""
    method.cam.precision = precision
    low, high = method.backgrounds
    labels = source(batch, [low, (low + high) / 2, high])
    score.update(labels[1], batch["mask"])
    return merge_labels([labels[0], labels[2]])


def time_steps(options: Namespace) -> None:
    """Print the network's pass, the maps and the step with each precision, and a plain product's pace."""
    setting = build(options, options.crop, options.batch, options.classes)
    parts = {BASE: step_parts(setting)[BASE]}
    for precision in PRECISIONS:
        name = precision or "float32"
        parts[f"multi-scale CAM, {name}"] = cast(setting, label_parts(setting)["multi-scale CAM"], precision)
        parts[f"step, {name}"] = cast(setting, step_of(setting), precision)
    seconds = measure(parts, options)
    rows = [[name, f"{each:.3f}", f"{each / seconds[BASE]:.2f}", f"{10.6 * seconds[BASE] / each:.2f}"]
            for name, each in seconds.items()]  # fmt: skip
    where = f"{options.device}, {options.threads} threads, torch {torch.__version__}"
    headers = ["part", "s", "× network", "10.6 networks / this"]
    print_table(f"{where}; {options.batch} images, crop {options.crop}", headers, rows)


def cast(setting: Setting, run: Run, precision: str | None) -> Run:
    """The run with maps in a precision."""

    def with_precision() -> None:
        setting[0].cam.precision = precision
        run()

    return with_precision


def main(words: Sequence[str] | None = None) -> None:
    """Compare labels, or times where the checkpoint is ``-``."""
    parser = arguments(__doc__.partition("\n")[0])
    for name, value in {"crop": 512, "batch": 2, "classes": 20, "images": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="N")
    options = parser.parse_intermixed_args(words)
    torch.set_num_threads(options.threads)
    ckpt, *options.overrides = options.overrides
    if ckpt == "-":
        time_steps(options)
    else:
        compare_labels(ckpt, options)


if __name__ == "__main__":
    keep_freed_memory()  # as training on a CPU does
    main()
