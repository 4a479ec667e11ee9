"""Predict images: ``python -m wsss_afa.predict ckpt=FILE source=FOLDER``.

A file that fails is reported at the end and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from wsss_afa.methods.recipe import load
from wsss_afa.cli.entry_point import entry_point
from wsss_afa.data.folder.records import IMAGE_SUFFIXES
from wsss_afa.files import write_whole
from wsss_afa.inference.prediction import BACKGROUND
from wsss_afa.inference.predictor import Predictor, Sizes
from wsss_afa.errors import UserError
from wsss_afa.visualize import voc_palette

RESULTS = "predictions.json"
"""Beside the pictures: what was predicted of every image, and how."""
_PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif"}
"""Of the files in a folder that get an answer, if only an error."""


def find_images(sources: Sequence[str], out: Path) -> tuple[list[Path], list[Path]]:
    """Images of files, folders and patterns, in order and each once; and the files left out.

    Of a folder, files with the ending of an image are taken, links to folders, hidden files and folders of
    results left out. A file that is named is taken whatever its ending, and be it missing: reading it will
    tell.

    Args:
        sources: Paths and patterns.
        out: Folder of the results.

    Raises:
        UserError: A pattern matches nothing, there is no image, or results would go among the images.
    """
    taken: dict[str, Path] = {}
    left_out: list[Path] = []
    for path in (path for source in sources for path in _expand(source)):
        if os.path.isdir(path) and path.resolve() == out.resolve():
            raise UserError(f"out={one_line(out)} is the folder of the images, need another: change it")
        for file in _walk(path) if os.path.isdir(path) else [path]:
            if file == path or file.suffix.lower() in _PHOTO_SUFFIXES or file.is_dir():
                taken.setdefault(os.path.abspath(file), file)
            else:
                left_out.append(file)
    if not taken:
        what = ", ".join(map(one_line, sources))
        raise UserError(f"source={what} has no image, need files such as .jpg or .png: mend the path")
    return list(taken.values()), left_out


def _expand(source: str) -> list[Path]:
    """The paths that a pattern matches; any other path stands for itself."""
    path = Path(source).expanduser()
    if not source or (glob.has_magic(source) and not os.path.lexists(path)):
        matches = sorted(glob.glob(str(path), recursive=True)) if source else []
        if not matches:
            raise UserError(f"source={one_line(source)} matches no file: mend the path or the pattern")
        return [Path(match) for match in matches]
    return [path]


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, and sub-folders that cannot be listed."""
    unlisted: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unlisted.append(error.filename)):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not _is_skipped(here / name))
        yield from (here / name for name in sorted(files) if not name.startswith("."))
    yield from map(Path, unlisted)


def _is_skipped(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name == "__MACOSX" or (folder / RESULTS).is_file()


def output_names(images: Sequence[Path]) -> list[str]:
    """A name for the results of each image, all different: its path below the folder that all lie in.

    The ending is dropped where that leaves the name different from all others.
    """
    paths = [os.path.abspath(path) for path in images]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    full = [os.path.relpath(path, root) for path in paths]
    folders = {str(parent) for name in full for parent in Path(name).parents}
    count = Counter([*full, *(os.path.splitext(name)[0] for name in full)])
    names = []
    for name in full:
        stem, suffix = os.path.splitext(name)
        unique = count[stem] == 1 + (not suffix) and f"{stem}.png" not in folders
        names.append(stem if unique else name)
    return names


def predict_all(
    predictor: Predictor, images: Sequence[Path], tags: Sequence[str] | None, out: Path, cams: bool
) -> Iterator[dict[str, Any]]:
    """Predict one image after the other and write its pictures; a failure is an answer too."""
    for path, name in zip(images, output_names(images), strict=True):
        record: dict[str, Any] = {"file": str(path)}
        try:
            yield record | predictor(path, tags).save(out, name, cams)
        except UserError as error:
            yield record | {"error": one_line(error)}


def describe(cfg: DictConfig, predictor: Predictor) -> dict[str, Any]:
    """What all images have in common, as plain values."""
    names = [BACKGROUND, *predictor.class_names]
    return {
        "checkpoint": str(cfg.ckpt),
        "protocol": OmegaConf.to_container(cfg.protocol, resolve=True),
        "long_side": cfg.long_side,
        "tile": cfg.tile,
        "overlap": cfg.overlap,
        "tags": as_list(cfg.tags),
        "class_names": names,
        "palette": voc_palette(len(names)).tolist(),
    }


def open_predictor(cfg: DictConfig) -> Predictor:
    """The predictor that the configuration describes."""
    sizes = Sizes(cfg.long_side, cfg.tile, cfg.overlap, cfg.max_pixels)
    net, labeler, recipe = load(cfg.ckpt)
    protocol = instantiate(cfg.protocol, mean=recipe["mean"], std=recipe["std"])
    return Predictor(net, labeler, recipe, str(cfg.device), protocol, sizes)


def open_folder(out: str) -> Path:
    """Make the folder of the results.

    Raises:
        UserError: Nothing can be written there.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"out={one_line(out)} cannot be written ({error.strerror}): set out to another"
        ) from error
    return folder


def as_list(value: object) -> list[str] | None:
    """Texts of a setting that is one or a list of them."""
    if value is None:
        return None
    return [str(each) for each in value] if isinstance(value, ListConfig) else [str(value)]


def one_line(text: object) -> str:
    """The text with line ends, and what else no terminal prints, escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def report(
    records: Sequence[dict[str, Any]], left_out: Sequence[Path], out: Path, console: Console
) -> list[str]:
    """Print what was done, and return the errors."""
    errors = [record["error"] for record in records if "error" in record]
    lines = [f"predicted {len(records) - len(errors)} of {len(records)} images"]
    if left_out:
        kinds = Counter(path.suffix.lower() or "no ending" for path in left_out)
        kind = ", ".join(f"{one_line(suffix)} {count}" for suffix, count in kinds.most_common(9))
        lines.append(f"left out  {len(left_out)} without the ending of an image: {kind}")
    lines += [f"failed    {error}" for error in errors]
    for line in [*lines, f"written   {one_line(out)}"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return errors


@entry_point("predict")
def main(cfg: DictConfig) -> float:
    """Predict all images and return their number.

    Raises:
        UserError: One or more could not be predicted; they are printed before.
    """
    if not isinstance(cfg.cams, bool):
        raise UserError(f"cams={cfg.cams}, need true or false: change it")
    out, tags = open_folder(cfg.out), as_list(cfg.tags)
    images, left_out = find_images(as_list(cfg.source) or [], out)
    predictor = open_predictor(cfg)
    predictor.choose(tags)
    console = Console()
    records: list[dict[str, Any]] = []
    answers = predict_all(predictor, images, tags, out, cfg.cams)
    try:
        bar = track(answers, "predicting", len(images), console=console, disable=not console.is_terminal)
        for record in bar:
            records.append(record)
    except KeyboardInterrupt:
        console.print(f"stopped after {len(records)} of {len(images)} images")
        sys.exit(130)
    finally:
        complete = len(records) == len(images)
        content = describe(cfg, predictor) | {"complete": complete, "images": records}
        write_whole(out / RESULTS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    errors = report(records, left_out, out, console)
    if errors:
        alone = f"{len(errors)} of {len(images)} images failed: mend what is listed above and in {RESULTS}"
        raise UserError(errors[0] if len(images) == 1 else alone)
    return float(len(images))


if __name__ == "__main__":
    main()
