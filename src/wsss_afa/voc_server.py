"""Results for VOC's evaluation server: ``python -m wsss_afa.voc_server ckpt=FILE data.root=…/VOC2012``.

Writes ``results/VOC2012/Segmentation/comp6_test_cls/NAME.png`` for each image of the split's list, packs them
to ``results.tgz`` and checks that file. ``check=PATH`` checks a folder or an archive that is there already.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import track

from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.archive import list_files
from wsss_afa.data.images import open_image, read_image
from wsss_afa.data.voc import VOC, VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.inference.predictor import Predictor
from wsss_afa.methods.recipe import load
from wsss_afa.visualize import save_label, voc_palette

ARCHIVE = "results.tgz"
"""What is uploaded."""
_TIME = 1325376000  # 2012-01-01: equal results make equal archives


def results_folder(competition: str, split: str) -> PurePosixPath:
    """Where the server looks for the PNGs, below the archive's root.

    Raises:
        UserError: There is no such competition.
    """
    if competition not in ("comp5", "comp6"):
        raise UserError(f"competition={competition} is not known, need comp5 or comp6: set competition=comp6")
    return PurePosixPath("results", "VOC2012", "Segmentation", f"{competition}_{split}_cls")


def open_predictor(cfg: DictConfig) -> Predictor:
    """The predictor that the configuration describes.

    Raises:
        UserError: There is no checkpoint, or it knows other classes than VOC's.
    """
    if cfg.ckpt is None:
        raise UserError("ckpt is not set: give a checkpoint, as in ckpt=FILE, or check=PATH")
    method = load(cfg.ckpt, cfg.trust)
    names = method.recipe["class_names"]
    if tuple(names) != VOC_CLASSES:
        raise UserError(
            f"ckpt={cfg.ckpt} knows {len(names)} classes ({names[0]}, …), need VOC's 20 in their order: give "
            "a checkpoint trained on VOC"
        )
    protocol = instantiate(cfg.protocol, mean=method.mean, std=method.std)
    return Predictor(method, str(cfg.device), protocol)


def pack(folder: Path, inside: PurePosixPath, archive: Path) -> None:
    """Pack a folder's files as ``inside/NAME``: sorted, with one owner, mode and time.

    The archive appears complete or not at all.
    """
    partial = archive.with_suffix(".partial")
    with (
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=_TIME) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(folder.iterdir()):
            member = tarfile.TarInfo(str(inside / path.name))
            member.size, member.mtime = path.stat().st_size, _TIME
            with path.open("rb") as file:
                tar.addfile(member, file)
    partial.replace(archive)


def find_problems(file: BinaryIO, original: Path) -> list[str]:
    """What the server would not take of one result, or count as something else.

    Args:
        file: The result's.
        original: The image that it belongs to.
    """
    try:
        with open_image(original) as image:
            size = image.size
        with open_image(file) as image:
            if image.format != "PNG" or image.mode != "P":
                return [f"is a {image.format} of mode {image.mode}, need an indexed PNG"]
            if image.size != size:
                return [f"is {_times(image.size)} pixels, its image is {_times(size)}"]
            highest = int(np.asarray(image).max())
            colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return [f"cannot be read ({error})"]
    labels = len(VOC_CLASSES) + 1
    problems = [f"has the value {highest}, need 0 to {labels - 1}"] if highest >= labels else []
    if len(colours) < labels or (colours[:labels] != voc_palette(labels)).any():
        problems.append("has another palette than VOC's")
    return problems


def check(path: Path, inside: PurePosixPath, images: VOC, console: Console) -> list[str]:
    """All problems of a folder or an archive of results, a line each.

    Args:
        path: A ``.tgz`` as it is uploaded, the folder that holds ``results``, or the one that holds the PNGs.
        inside: Where the PNGs lie in the archive.
        images: Those that should have a result.
        console: Shows progress if it is a terminal.

    Raises:
        UserError: There is no such folder or archive, or it is damaged or not safe to unpack.
    """
    originals = {inside / f"{image.stem}.png": image for image in images.paths}
    problems: list[str] = []
    missing = dict(originals)
    results = _open_folder(path, inside) if path.is_dir() else _open_archive(path)
    hidden = not console.is_terminal
    for place, file in track(results, "checking", len(originals), console=console, disable=hidden):
        if missing.pop(place, None) is None:
            problems.append(f"{place}: is no result of this split, or lies elsewhere: remove it")
        else:
            problems += [f"{place.name}: {problem}" for problem in find_problems(file, originals[place])]
    return problems + [f"{place.name}: is missing" for place in missing]


def _open_folder(path: Path, inside: PurePosixPath) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
    """Files by the place that they would have in an archive."""
    folder = path / inside if (path / inside).is_dir() else path
    for each in sorted(each for each in folder.rglob("*") if each.is_file()):
        with each.open("rb") as file:
            yield inside / each.relative_to(folder).as_posix(), file


def _open_archive(path: Path) -> Iterator[tuple[PurePosixPath, BinaryIO]]:
    """Files by their place, once all of them have been found harmless."""
    list_files(path)
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:  # else it is a folder
                    yield PurePosixPath(member.name), cast(BinaryIO, file)
    except tarfile.ReadError as error:
        raise UserError(f"{path} is no gzip-compressed tar ({error}), need a .tgz: pack it anew") from error


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def predict_all(cfg: DictConfig, images: VOC, inside: PurePosixPath, console: Console) -> Path:
    """Write a result for every image and pack them; returns the archive.

    Raises:
        UserError: The checkpoint does not do, an image cannot be read, or the disk is full.
    """
    predictor, out = open_predictor(cfg), Path(cfg.out).expanduser()
    hidden = not console.is_terminal
    try:
        for path in track(images.paths, "predicting", console=console, disable=hidden):
            save_label(predictor(read_image(path)).label, out / inside / f"{path.stem}.png")
        pack(out / inside, inside, out / ARCHIVE)
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error}): set out to another folder") from error
    console.print(f"written   {out / ARCHIVE}")
    return out / ARCHIVE


@entry_point("voc_server")
def main(cfg: DictConfig) -> float:
    """Write results, or take those that are there, check them and return their number.

    Raises:
        UserError: They have problems; these are printed before.
    """
    inside, console = (
        results_folder(cfg.competition, cfg.split),
        Console(soft_wrap=True, highlight=False, markup=False, emoji=False),
    )
    images = VOC(cfg.data.root, cfg.split)
    path = predict_all(cfg, images, inside, console) if cfg.check is None else Path(cfg.check).expanduser()
    problems = check(path, inside, images, console)
    for problem in problems:
        console.print(f"problem   {problem}")
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError(f"{path} has {count}: mend what is listed above")
    console.print(f"checked   {path}: {len(images)} results, nothing to mend")
    return float(len(images))


if __name__ == "__main__":
    main()
