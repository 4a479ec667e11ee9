"""Time evaluation, prediction and label making of one photograph, beside the straightforward ways.

    python benchmarks/images_per_second.py --threads 2 --photo FILE.jpg
    python benchmarks/images_per_second.py --threads 1 --cpu-time backbone.variant=b0

AFA with random weights. The first table has every evaluation protocol that segments, without its CRF, as
multiples of one pass; the CRF of this library beside that of pydensecrf2; and what the prediction of a file
is made of. The second has the labels of each source, beside one network pass at a time and the refinement
that holds all neighbours in memory (``tests/support/reference.py``).
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from timing import Run, arguments, build, measure, print_table
from torch import Tensor

from wsss_afa.cli.memory import keep_freed_memory
from wsss_afa.files import CONFIG_DIR
from wsss_afa.inference.predictor import Predictor
from wsss_afa.methods.base import Method
from wsss_afa.ops.images import to_rgb
from wsss_afa.types import Batch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
import reference
from other_crf import pydensecrf

PROTOCOLS = ("plain", "afa", "toco_voc", "toco_coco", "more_seg", "weclip", "excel")
"""Those that ask a network for nothing but segments."""
SIDES = (375, 500)
"""Of the generated photograph; most of VOC's have them."""


def photograph(options: Namespace, folder: Path) -> Path:
    """The given file, or a JPEG of smooth noise."""
    if options.photo is not None:
        return options.photo
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(SIDES[::-1], Image.Resampling.BICUBIC).save(folder / "noise.jpg")
    return folder / "noise.jpg"


def protocol_runs(predictor: Predictor, image: Tensor) -> dict[str, Run]:
    """Each protocol without CRF; AFA's CRF, and pydensecrf2 in its place."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        settings = {name: compose(f"protocol/{name}").protocol for name in PROTOCOLS}
    runs: dict[str, Run] = {}
    for name, setting in settings.items():
        protocol = instantiate(setting, crf=None, mean=predictor.method.mean, std=predictor.method.std)
        runs[f"protocol={name}"] = partial(protocol, predictor.method, image)
    refining = instantiate(settings["afa"], mean=predictor.method.mean, std=predictor.method.std)
    probabilities = runs["protocol=afa"]()
    runs["CRF"] = partial(refining.refine, image, probabilities)
    if importlib.util.find_spec("pydensecrf") is not None:
        rgb = (to_rgb(image, predictor.method.mean, predictor.method.std) * 255).round().byte().cpu()
        runs["CRF of pydensecrf2"] = partial(pydensecrf, refining.crf, rgb, probabilities.cpu())
    return runs


def file_runs(predictor: Predictor, path: Path, folder: Path) -> dict[str, Run]:
    """A file from the disk to its pictures, and the three parts of that."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    prediction = predictor(pixels)
    return {
        "predict: read": lambda: np.asarray(Image.open(path).convert("RGB")),
        "predict: network and label": lambda: predictor(pixels),
        "predict: write mask and overlay": lambda: prediction.save(folder, cams=False),
        "predict: all": lambda: predictor(path).save(folder, cams=False),
        "predict: all, with heat maps": lambda: predictor(path).save(folder),
    }


def label_runs(method: Method, batch: Batch) -> dict[str, tuple[Run, Run | None]]:
    """Labels of each source, and the straightforward way where there is one that ends within minutes."""
    labeler, image, tags = method.labeler, batch["image"], batch["class_label"]
    cam, par = labeler.cam, labeler.refined.refine
    rgb = to_rgb(image, method.mean, method.std)[0]
    dilations = sorted({max(abs(dy), abs(dx)) for dy, dx in par.offsets})
    low, high = method.backgrounds

    def slow_cam() -> Tensor:
        activate = lambda one: method.net.activate(one[None]).cam[0]  # noqa: E731
        return reference.multi_scale_cam(activate, image[0], cam.scales, cam.mirror)

    def slow_par() -> Tensor:
        refine = lambda colours, maps: reference.par(colours[None], maps[None], par.num_iter, dilations)[0]  # noqa: E731
        box = batch["valid_box"][0].tolist()
        return reference.refined_label(rgb, slow_cam(), tags[0].tolist(), box, (low, high), refine)

    slow: dict[str, Run] = {"cam": slow_cam, "par": slow_par}
    return {
        source: (lambda source=source: method.maps(batch, source, [low, high]), slow.get(source))
        for source in method.sources
    }


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = arguments(__doc__.partition("\n")[0])
    parser.add_argument("--photo", type=Path, metavar="FILE", help="instead of smooth noise of 375 × 500")
    parser.add_argument("--classes", type=int, default=20, metavar="N")
    options = parser.parse_intermixed_args(words)
    method = build(options, 64, 1, options.classes)[0].eval()
    method.recipe["class_names"] = list(map(str, range(options.classes)))
    where = f"{options.device}, {options.threads} threads, {options.precision}, torch {torch.__version__}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = photograph(options, folder)
        predictor = Predictor(method, options.device)
        image = predictor._normalise(np.asarray(Image.open(path).convert("RGB")))
        size = f"an image of {image.shape[-1]} × {image.shape[-2]}"
        seconds = measure(protocol_runs(predictor, image) | file_runs(predictor, path, folder), options)
        base = seconds["protocol=plain"]
        rows = [
            [part, f"{each:.4f}", f"{1 / each:.2f}", f"{each / base:.2f}"] for part, each in seconds.items()
        ]
        print_table(f"{where}; {size}", ["part", "s", "images/s", "× one pass"], rows)
    height, width = image.shape[-2:]
    tags = torch.zeros(1, options.classes, device=image.device)
    tags[:, :2] = 1
    batch: Batch = {
        "image": image, "class_label": tags, "name": [""], "seed": torch.zeros(1, dtype=torch.long),
        "valid_box": torch.tensor([[0, height, 0, width]], device=image.device),
    }  # fmt: skip
    pairs = label_runs(method, batch)
    runs = {(name, i): run for name, both in pairs.items() for i, run in enumerate(both) if run is not None}
    seconds = measure(runs, options)
    rows = []
    for name in pairs:
        ours, slow = seconds[name, 0], seconds.get((name, 1))
        beside = ["", ""] if slow is None else [f"{slow:.3f}", f"{slow / ours:.1f}"]
        rows.append([f"source={name}", f"{ours:.3f}", f"{1 / ours:.2f}", *beside])
    print_table(f"labels, two tags; {size}", ["labels", "s", "images/s", "slow, s", "×"], rows)


if __name__ == "__main__":
    keep_freed_memory()  # as the programs do on a CPU
    main()
