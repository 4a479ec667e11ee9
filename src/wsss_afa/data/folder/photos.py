"""Which files of a folder are photos, where their tags stand, and which photo a row of a tag file means."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from wsss_afa.data.folder.cvat import is_cvat
from wsss_afa.data.folder.label_studio import original_name, upload_name
from wsss_afa.data.folder.other_tags import other_tags
from wsss_afa.data.folder.records import IMAGE_SUFFIXES, TAG_SUFFIXES, read_text
from wsss_afa.data.folder.splits import folder_splits, is_filler, split_of
from wsss_afa.data.folder.tags import Row, Table, clean, read_tags
from wsss_afa.data.images import all_of
from wsss_afa.data.names import tidy, told_apart
from wsss_afa.data.own_output import is_own_output
from wsss_afa.errors import UserError

_NEED = "need labels.csv with a header `file,tags` (or data.labels), or a sub-folder for each class"
_HALVES = re.compile(r"(un|non|not)?[\W_]*(label+ed|annotated|tagged|supervised)", re.IGNORECASE)
_MAX_HINTS = 20
_FOREIGN = (".heic", ".heif", ".cr2", ".nef", ".arw", ".dng")


def find_photos(root: Path) -> list[str]:
    """All images but those in ``masks``, in order; paths are relative to the root, with forward slashes.

    Raises:
        UserError: There is none, two have one name, or something cannot be an image.
    """
    if not root.is_dir():
        problem = "is a file" if root.is_file() else "does not exist"
        raise UserError(f"data.root={root} {problem}, need a folder of photos: unpack it or mend the path")
    files = [path.relative_to(root).as_posix() for path in walk_images(root)]
    photos = sorted(file for file in files if not file.startswith("masks/"))
    if not photos:
        raise UserError(f"data.root={root} has no image, need photos such as .jpg or .png: set data.root")
    names: dict[str, str] = {}
    for file in photos:
        if (other := names.setdefault(tidy(bare(file)), file)) != file:
            both = f"{other} and {file}" if bare(other) == bare(file) else told_apart(other, file)
            raise UserError(f"{root} has {both}, need one photo of a name: rename or delete one")
    return photos


def walk_images(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All images below a folder, links followed; hidden files and what this library wrote are left out.

    Raises:
        UserError: A folder cannot be listed, a link leads nowhere or back, or a name belies what it names.
    """
    real = folder.resolve()
    if real in above:
        raise UserError(f"{folder} links back to {real}, which holds it: remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({error.strerror}): change its permissions") from error
    for entry in entries:
        path = Path(entry.path)
        suffix = path.suffix.lower()
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            if suffix in IMAGE_SUFFIXES:
                raise UserError(f"{path} is a folder with the name of an image: rename it")
            if not is_own_output(path):
                yield from walk_images(path, (*above, real))
        elif suffix in _FOREIGN:
            raise UserError(f"{path} is in a camera's format, need .jpg or .png, for example: convert it")
        elif suffix in IMAGE_SUFFIXES:
            if not entry.is_file():
                raise UserError(f"{path} links to nothing, need an image: copy it there or remove the link")
            yield path


def bare(file: str) -> str:
    """The path without the ending of an image."""
    stem, dot, suffix = file.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else file


def read_tables(
    root: Path, labels: str | None, separator: str | None, listed: Collection[str] = ()
) -> Table | None:
    """Read the tag file ``labels``, or else the one in the folder, or those in folders of splits, if any.

    ``listed`` are the classes' names, if they are known.

    Raises:
        UserError: There are several in one folder, or one cannot be read.
    """
    if labels is not None and not (root / labels).is_file():
        raise UserError(f"data.labels={labels} is no file in {root}, need a tag file: mend the path")
    path = root / labels if labels is not None else _tag_file(root)
    if path is not None:
        return read_tags(path, separator, listed)
    folders = [each for each in sorted(root.iterdir()) if split_of(each.name) and each.is_dir()]
    tables = {each.name: read_tags(part, separator, listed) for each in folders if (part := _tag_file(each))}
    rows, declared = list[Row](), dict[str, None]()
    for name, table in tables.items():
        rows += [row._replace(file=f"{name}/{row.file}") for row in table.rows]
        declared |= dict.fromkeys(table.class_names)
    how = ", ".join(f"{name}/{table.how}" for name, table in tables.items())
    doubts = tuple(doubt for table in tables.values() for doubt in table.doubts)
    renames = any(table.renames for table in tables.values())
    return Table(rows, how, tuple(declared), doubts, renames=renames) if tables else None


def _tag_file(folder: Path) -> Path | None:
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.suffix.lower() in TAG_SUFFIXES or is_cvat(path)]
    found = [path for path in found if path.name != "notes.json"]  # Label Studio's, beside labels of YOLO
    if any(path.stem.lower() == "labels" for path in found):  # others may be anything, but no lists of splits
        found = [path for path in found if path.stem.lower() == "labels" or split_of(path.stem)]
    if len(found) > 1:
        both = f"{found[0].name} and {found[1].name}"
        raise UserError(f"{folder} has {both}, need one tag file: name it by data.labels")
    return found[0] if found else None


def class_folders(root: Path, photos: list[str]) -> Table:
    """Tags by folder: the first on a photo's way that is no split, nor just called ``images``, is its class.

    Photos of the split test that lie in no class's folder are left out.

    Raises:
        UserError: A photo lies in no folder, or a folder has no photo.
    """
    parts = {file: PurePosixPath(file).parts for file in photos}
    found = folder_splits(root, photos, classes=True)
    level = _class_level(list(parts.values()), found.levels)
    splits = dict(zip(photos, found.splits, strict=True))
    loose = [file for file, part in parts.items() if len(part) < level + 2]
    refused = [file for file in loose if splits[file] != "test"]
    if refused or len(loose) == len(photos):
        problem = "no tags" if len(loose) == len(photos) else f"{refused[0]} beside folders of classes"
        remedy = other_tags(root) or "add it, or move the photo"
        raise UserError(f"data.root={root} has {problem}, {_NEED}: {remedy}")
    placed = {file: part for file, part in parts.items() if file not in loose}
    bases = {root.joinpath(*part[:level]) for part in placed.values()}
    filled = {root.joinpath(*part[: level + 1]) for part in placed.values()}
    for folder in (folder for base in sorted(bases) for folder in sorted(base.iterdir())):
        plain = folder.is_dir() and not folder.name.startswith((".", "__")) and folder != root / "masks"
        if plain and folder not in filled and not is_own_output(folder):
            raise UserError(f"{folder} has no image, need photos of its class: fill or delete it")
    rows = [Row(file, clean([part[level]]), "", file) for file, part in placed.items()]
    names = {part[level] for part in placed.values()}
    if nameless := [name for name in names if not tidy(name)]:
        raise UserError(f"{root} has a folder with the invisible name {nameless[0]!r}: rename it")
    halves = [name for name in sorted(names) if _HALVES.fullmatch(name)]
    if len(names) > 1 and halves:
        problem = f"{root} has a folder {halves[0]}, which is no class"
        raise UserError(f"{problem}: move photos without tags away, and set data.root to those with tags")
    if len(names) == 1 and all(len(part) > level + 2 for part in placed.values()):
        only = root.joinpath(*next(iter(placed.values()))[: level + 1])
        raise UserError(
            f"data.root={root} has all photos in {only}, need a folder for each class: set data.root={only}"
        )
    left = f", {len(loose)} photos of test without a class left out" if loose else ""
    doubts = _shared_folders(root, placed.values(), level)
    return Table(rows, f"a sub-folder per class{left}", doubts=doubts, covers=not loose)


def _shared_folders(root: Path, parts: Iterable[tuple[str, ...]], level: int) -> tuple[str, ...]:
    """A doubt if folders that are taken for classes have the same sub-folders, as parts of a data set do."""
    below: dict[str, set[str]] = {}
    for part in parts:
        below.setdefault(part[level], set()).update(part[level + 1 : -1][:1])
    counts = Counter(
        name for names in below.values() for name in names if not is_filler(name) and not split_of(name)
    )
    shared = [name for name, count in counts.items() if count > 1 and count == len(below)]
    if not shared:
        return ()
    problem = f"{root} has a folder {min(shared)} in each of {', '.join(sorted(below)[:3])}, read as classes"
    return (f"{problem}: if they are parts of the data, call them train, val or test",)


def _class_level(parts: list[tuple[str, ...]], split_levels: Collection[int]) -> int:
    """The first depth whose folders are no splits, nor one folder with a name such as ``images``."""
    level = 0
    while level in split_levels or (
        len(names := {part[level] for part in parts if len(part) > level + 1}) == 1 and is_filler(*names)
    ):
        level += 1
    return level


def match_rows(root: Path, photos: list[str], table: Table, ignore_unlisted: bool) -> dict[str, Row]:
    """The row of each photo; a UserError says that rows and photos do not pair off, with notes."""
    by_name, rows, mistakes = group_by_name(photos), dict[str, Row](), list[str]()
    for row in _renamed(table.rows, by_name) if table.renames else table.rows:
        try:
            file = find_photo(root, by_name, row, hint=len(mistakes) < _MAX_HINTS)
        except UserError as error:
            mistakes.append(str(error))
            continue
        if file in rows:
            same = set(row.tags) == set(rows[file].tags)
            problem = f"repeats {file}" if same else f"gives {file} other tags than {rows[file].where}"
            mistakes.append(f"{row.where} {problem}, need one row with all tags of a photo: merge them")
        rows.setdefault(file, row)
    unlisted = [file for file in photos if file not in rows]
    if unlisted and not ignore_unlisted:
        problem = f"has photos without tags: {len(unlisted)}, {unlisted[0]} first"
        mistakes.append(f"{root} {problem}: add rows, or set data.ignore_unlisted=true")
        mistakes += [f"{root / file} has no tags: add a row" for file in unlisted[1:]]
    if mistakes:
        raise all_of(mistakes)
    return rows


def _renamed(rows: Iterable[Row], by_name: dict[str, list[str]]) -> Iterator[Row]:
    """Rows whose file a tool may have renamed when it was uploaded, with the name that the photo has here."""
    names = {upload_name(name): name for name in by_name}
    for row in rows:
        name = tidy(PurePosixPath(bare(row.file)).name)
        yield row if name in by_name else row._replace(file=original_name(name, names))


def listed_splits(root: Path, photos: list[str]) -> dict[str, str]:
    """The split of each photo that ``train.txt``, ``val.txt`` or the like name, a photo in each line.

    They lie beside the photos, or below ``ImageSets`` as VOC's do.

    Raises:
        UserError: A line means no photo, or a photo stands in lists of two splits.
    """
    labelled = {bare(photo) for photo in photos}  # whose text beside it is of that photo, as YOLO's is
    texts = [*root.glob("*.[tT][xX][tT]"), *root.glob("ImageSets/*/*.txt")]
    texts = [each for each in sorted(texts) if each.stem not in labelled]
    lists = {each: split for each in texts if (split := split_of(each.stem))}
    if "val" in lists.values():  # as in VOC, whose photos of trainval are in the others
        lists = {path: split for path, split in lists.items() if path.stem.lower() != "trainval"}
    by_name, found = group_by_name(photos) if lists else {}, dict[str, str]()
    for path, split in lists.items():
        for n, line in enumerate(read_text(path).splitlines(), 1):
            if not (name := line.strip().replace("\\", "/")):
                continue
            file = find_photo(root, by_name, Row(name, (), "", f"{path} line {n}"))
            if found.setdefault(file, split) != split:
                raise UserError(f"{path} line {n} names {file}, which is of {found[file]}: delete either")
    return found


def group_by_name(photos: list[str]) -> dict[str, list[str]]:
    """Photos by their name, in its one form, without folders and ending."""
    by_name: dict[str, list[str]] = {}
    for file in photos:
        by_name.setdefault(tidy(PurePosixPath(bare(file)).name), []).append(file)
    return by_name


def find_photo(root: Path, by_name: dict[str, list[str]], row: Row, hint: bool = True) -> str:
    """The photo that a row means; either may have folders above what they share.

    A message looks for the nearest name if it may ``hint``, which takes a while in large folders.

    Raises:
        UserError: It means no photo, or several.
    """
    name = tidy(PurePosixPath(bare(row.file)).name)
    found = [file for file in by_name.get(name, []) if _same(row.file, file)]
    exact = [file for file in found if tidy(row.file) in (tidy(file), tidy(bare(file)))]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise UserError(f"{row.where} means {found[0]} or {found[1]}: write the path from {root} on")
    near = difflib.get_close_matches(name, by_name, 1) if hint and len(by_name) < 10_000 else []
    remedy = f"did you mean {by_name[near[0]][0]}?" if near else "copy it there or delete the row"
    raise UserError(f"{row.where} names {row.file}, which is no image in {root}: {remedy}")


def _same(one: str, other: str) -> bool:
    if bare(one) == one or bare(other) == other:
        one, other = bare(one), bare(other)
    ways = ([tidy(part) for part in way.removeprefix("./").split("/")] for way in (one, other))
    shorter, longer = sorted(ways, key=len)
    return longer[-len(shorter) :] == shorter
