"""Which files a prediction takes, and what their results are called."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsss_afa.data.folder.records import IMAGE_SUFFIXES
from wsss_afa.data.own_output import is_own_output
from wsss_afa.errors import UserError

_PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif"}  # these get an answer, if only an error


def find_images(sources: Sequence[str], out: Path) -> tuple[list[Path], list[Path]]:
    """Images of files, folders and patterns, in order and each once; and the files left out.

    Of a folder, files with the ending of an image are taken, links to folders, hidden files and what this
    library wrote left out. A file that is named is taken whatever its ending, and be it missing: reading it
    will tell. A UserError says that a pattern matches nothing, that there is no image, or that the results,
    which go to the folder ``out``, would lie among the images.
    """
    taken: dict[str, Path] = {}
    left_out: list[Path] = []
    for path in (path for source in sources for path in _expand(source)):
        if os.path.isdir(path) and path.resolve() == out.resolve():
            raise UserError(f"out={out} is the folder of the images, need another: change it")
        for file in _walk(path) if os.path.isdir(path) else [path]:
            if file == path or file.suffix.lower() in _PHOTO_SUFFIXES or file.is_dir():
                taken.setdefault(os.path.abspath(file), file)
            else:
                left_out.append(file)
    if not taken:
        what = ", ".join(sources)
        raise UserError(f"source={what} has no image, need files such as .jpg or .png: mend the path")
    return list(taken.values()), left_out


def _expand(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if source and (os.path.lexists(path) or not glob.has_magic(source)):
        return [path]
    if matches := sorted(glob.glob(str(path), recursive=True)) if source else []:
        return [Path(match) for match in matches]
    raise UserError(f"source={source} matches no file: mend the path or the pattern")


def _walk(folder: Path) -> Iterator[Path]:
    unlisted: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=lambda error: unlisted.append(error.filename)):
        here = Path(parent)
        seen = (name for name in folders if not name.startswith(".") and name != "__MACOSX")
        folders[:] = sorted(name for name in seen if not is_own_output(here / name))
        yield from (here / name for name in sorted(files) if not name.startswith("."))
    yield from map(Path, unlisted)


def below_one_folder(images: Sequence[Path]) -> tuple[Path, list[str]]:
    """The folder that all images lie in, at some depth, and their paths from there on."""
    paths = [os.path.abspath(path) for path in images]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Path(root), [os.path.relpath(path, root) for path in paths]


def output_names(images: Sequence[Path]) -> list[str]:
    """A name for the results of each image, all different: its path below the folder that all lie in.

    The ending is dropped where that leaves the name different from all others.
    """
    _, full = below_one_folder(images)
    folders = {str(parent) for name in full for parent in Path(name).parents}
    count = Counter([*full, *(os.path.splitext(name)[0] for name in full)])
    names = []
    for name in full:
        stem, suffix = os.path.splitext(name)
        unique = count[stem] == 1 + (not suffix) and f"{stem}.png" not in folders
        names.append(stem if unique else name)
    return names
