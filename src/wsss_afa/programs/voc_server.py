"""Results for VOC's evaluation server: ``wsss-afa voc_server ckpt=FILE data.root=…/VOC2012``.

Writes ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png`` for each image of the split's list, packs them
to ``results.tgz`` and checks that file. ``check=PATH`` checks a folder or an archive that is there already.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from wsss_afa.data.images import read_image
from wsss_afa.data.voc import VOC, VOC_CLASSES
from wsss_afa.errors import UserError, plain_console, say
from wsss_afa.inference.predictor import Predictor
from wsss_afa.inference.voc_results import check, pack, results_folder
from wsss_afa.methods.recipe import load
from wsss_afa.reports.visualize import save_label

ARCHIVE = "results.tgz"
"""What is uploaded."""


def open_predictor(cfg: DictConfig) -> Predictor:
    """The predictor of the configuration; UserError without a checkpoint that knows VOC's classes alone."""
    if cfg.ckpt is None:
        raise UserError("ckpt is not set: give a checkpoint, as in ckpt=FILE, or check=PATH")
    method = load(cfg.ckpt, cfg.trust)
    names = method.recipe["class_names"]
    if tuple(names) != VOC_CLASSES:
        raise UserError(
            f"ckpt={cfg.ckpt} knows {len(names)} classes ({names[0]}, …), need VOC's 20 in their order: give "
            "a checkpoint trained on VOC"
        )
    return Predictor(method, str(cfg.device), instantiate(cfg.protocol, mean=method.mean, std=method.std))


def predict_all(cfg: DictConfig, images: VOC, inside: PurePosixPath, console: Console) -> Path:
    """Write a result for every image and pack them; return the archive, or raise a UserError."""
    predictor, out = open_predictor(cfg), Path(cfg.out).expanduser()
    hidden = not console.is_terminal
    try:
        for path in track(images.paths, "predicting", console=console, disable=hidden):
            save_label(predictor(read_image(path)).label, out / inside / f"{path.stem}.png")
        pack(out / inside, inside, out / ARCHIVE)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): set out to another folder") from error
    say("written", out / ARCHIVE)
    return out / ARCHIVE


def run(cfg: DictConfig) -> float:
    """Write results, or take those that are there, check them and return their number.

    Raises:
        UserError: They have problems; these are printed before.
    """
    inside = results_folder(cfg.competition, cfg.split)
    console = plain_console()
    images = VOC(cfg.data.root, cfg.split)
    path = predict_all(cfg, images, inside, console) if cfg.check is None else Path(cfg.check).expanduser()
    problems = check(path, inside, images, console)
    for problem in problems:
        say("problem", problem)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError(f"{path} has {count}: mend what is listed above")
    say("checked", f"{path}: {len(images)} results, nothing to mend")
    return float(len(images))
