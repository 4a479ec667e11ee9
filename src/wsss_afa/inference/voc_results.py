"""What VOC's evaluation server takes: where results lie, how they are packed, what is wrong with them."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from wsss_afa.data.archive import list_files
from wsss_afa.data.images import open_image
from wsss_afa.data.voc import VOC, VOC_CLASSES
from wsss_afa.errors import UserError
from wsss_afa.files import partial_name
from wsss_afa.reports.visualize import voc_palette

_TIME = 1325376000  # 2012-01-01: equal results make equal archives


def results_folder(competition: str, split: str) -> PurePosixPath:
    """Where the server looks for the PNGs in the archive; a UserError refuses an unknown competition."""
    if competition not in ("comp5", "comp6"):
        raise UserError(f"competition={competition} is not known, need comp5 or comp6: set competition=comp6")
    return PurePosixPath("results", "VOC2012", "Segmentation", f"{competition}_{split}_cls")


def pack(folder: Path, inside: PurePosixPath, archive: Path) -> None:
    """Pack a folder's files as ``inside/NAME``: sorted, with one owner, mode and time.

    The archive appears complete or not at all.
    """
    partial = archive.with_name(partial_name())
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


def check(path: Path, inside: PurePosixPath, images: VOC, console: Console) -> list[str]:
    """All problems of a folder or an archive of results of the images, a line each.

    The path is a ``.tgz`` as it is uploaded, the folder that holds ``results``, or the one that holds the
    PNGs; ``inside`` is where they lie in the archive. A console that is a terminal shows progress. A
    UserError says that there is no such folder or archive, or that it is damaged or not safe to unpack.
    """
    originals = {inside / f"{image.stem}.png": image for image in images.paths}
    problems, missing, hidden = list[str](), dict(originals), not console.is_terminal
    results = _open_folder(path, inside) if path.is_dir() else _open_archive(path)
    for place, file in track(results, "checking", len(originals), console=console, disable=hidden):
        if missing.pop(place, None) is None:
            problems.append(f"{place}: is no result of this split, or lies elsewhere: remove it")
        else:
            problems += [f"{place.name}: {problem}" for problem in find_problems(file, originals[place])]
    return problems + [f"{place.name}: is missing" for place in missing]


def find_problems(file: IO[bytes], original: Path) -> list[str]:
    """What the server would not take of the result of an image, or count as something else."""
    labels = len(VOC_CLASSES) + 1
    try:
        with open_image(original) as image:
            size = image.size
        with open_image(file) as image:
            if image.format != "PNG" or image.mode != "P":
                return [f"is a {image.format} of mode {image.mode}, need an indexed PNG"]
            if image.size != size:
                return ["is {}×{} pixels, its image is {}×{}".format(*image.size, *size)]
            highest = int(np.asarray(image).max())
            colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[:labels]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return [f"cannot be read ({error})"]
    problems = [f"has the value {highest}, need 0 to {labels - 1}"] if highest >= labels else []
    if not np.array_equal(colours, voc_palette(labels)):
        problems.append("has another palette than VOC's")
    return problems


def _open_folder(path: Path, inside: PurePosixPath) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    folder = path / inside if (path / inside).is_dir() else path
    for each in sorted(each for each in folder.rglob("*") if each.is_file()):
        with each.open("rb") as file:
            yield inside / each.relative_to(folder).as_posix(), file


def _open_archive(path: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    list_files(path)  # an entry that may do harm is refused
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                if file := tar.extractfile(member):  # else it is a folder
                    yield PurePosixPath(member.name), file
    except tarfile.ReadError as error:
        raise UserError(f"{path} is no gzip-compressed tar ({error}), need a .tgz: pack it anew") from error
