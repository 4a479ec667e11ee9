"""Throw made-up tag files, folders and images at the readers: ``python tests/fuzz.py [CASES] [SECONDS]``.

Each case is a function of its number alone. A reader must answer, or refuse with a `UserError` of one
printable line; it makes no class that nothing names, and trains on nothing that lies in a folder of tests.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from wsss_afa.data.folder.content import read_folder
from wsss_afa.data.folder.splits import split_of
from wsss_afa.data.folder.tags import read_tags
from wsss_afa.data.images import read_image, read_mask
from wsss_afa.data.names import tidy
from wsss_afa.errors import UserError

NAMES = (
    "cat", "dog", "hot dog", "V\u00f6gel", "Vo\u0308gel", "c\u200bat", "Cat", "nan", "0", "1", "train",
    "background", "[x]", "a'b", 'q"q', "x\u00a0y", "\U0001f431", "c\u0430t", "-", "",
)  # fmt: skip
HEADS = (
    "file", "image", "id", "tags", "label", "labels", "split", "cat", "dog", "is_valid", "usage", "",
    "Unnamed: 0", "file ",
)  # fmt: skip
FOLDERS = (
    "train", "Training", "test", "test_set", "val", "valid", "dev", "holdout", "images", "cat", "dog", "cat ",
    "mask", "labels", "masks", "runs", ".hydra", "train dogs", "fold1", "background", "V\u00f6gel",
    "Vo\u0308gel",
)  # fmt: skip
FORMS = (
    ("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("TIFF", "F"),
    ("TIFF", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("WEBP", "RGB"), ("PPM", "L"),
)  # fmt: skip


def tag_file(rng: random.Random, folder: Path) -> None:
    """One table of a random form with random faults."""
    files = [f"{letter}.jpg" for letter in "abcd"]
    if rng.random() < 0.5:
        path = folder / "labels.csv"
        mark = rng.choice(",;\t")
        heads = [
            *rng.choice((["file"], ["id", "tags"], ["image", "label"], [])),
            *rng.sample(HEADS, rng.randint(0, 3)),
        ]
        heads = list(dict.fromkeys(heads))
        lines = [mark.join(heads)]
        for file in files:
            cells = [file if head.strip() in ("file", "image", "id") else cell(rng) for head in heads]
            lines.append(mark.join(each if mark not in each else f'"{each}"' for each in cells))
        text = rng.choice(("", "sep=;\n", "\ufeff")) + rng.choice(("\n", "\r\n")).join(lines)
    else:
        path = folder / rng.choice(("labels.json", "labels.jsonl"))
        text = "\n".join(json.dumps(thing(rng, files), ensure_ascii=False) for _ in range(rng.randint(1, 3)))
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 3))):
        start, stop = rng.randrange(len(data) or 1), rng.randrange(len(data) + 1)
        data[start:stop] = bytes(rng.choices(b'",;[]{}\n\x00\xff1', k=2))
    path.write_bytes(bytes(data))
    table = read_tags(path, rng.choice((None, None, ";", " ")), rng.choice(((), (), ("cat", "hot dog"))))
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    said = unescaped(path.read_bytes().decode(coding))
    for name in {*table.class_names, *(tag for row in table.rows for tag in row.tags)}:
        assert squash(name) in said, (name, text)
        assert name == tidy(name), name


def cell(rng: random.Random) -> str:
    """Tags in one of the forms in which they are written."""
    some = rng.sample(NAMES, rng.randint(0, 3))
    quoted = [repr(name) for name in some]
    return rng.choice((
        *rng.choices(NAMES, k=3),
        rng.choice((";", ",", "|", " ")).join(some),
        f"[{' '.join(quoted)}]",
        f"[{', '.join(quoted)}]",
        f"{{{', '.join(quoted)}}}",
        f"array([{', '.join(quoted)}], dtype=object)",
        rng.choice(("0", "1", "true", "train", "val")),
        json.dumps({"choices": some}, ensure_ascii=False),
    ))  # fmt: skip


def thing(rng: random.Random, files: list[str]) -> object:
    """JSON that is nearly a table."""
    ids = rng.choice((int, float, str))
    return rng.choice((
        lambda: [{"file": file, "tags": rng.sample(NAMES, 2)} for file in files],
        lambda: {file: rng.choice((rng.sample(NAMES, 2), cell(rng), None, {}, 3)) for file in files},
        lambda: {"file": rng.choice(files), "tags": cell(rng)},
        lambda: {"images": [{"id": ids(i), "file_name": file} for i, file in enumerate(files)],
                 "categories": [{"id": i, "name": rng.choice(NAMES)} for i in range(rng.randint(0, 3))],
                 "annotations": [{"image_id": ids(rng.randrange(5)), "category_id": rng.randrange(3)}]},
        lambda: rng.choice((3, "x", None, [], [[]], {}, {"info": {}}, 1e999)),
    ))()  # fmt: skip


def unescaped(text: str) -> str:
    """A file's letters and digits, with those of characters that Python's repr escapes."""
    shown = re.sub(r"\\(?:x(..)|u(....))", lambda found: chr(int(found[1] or found[2], 16)), text)
    return squash(text) + " " + squash(shown)


def squash(text: str) -> str:
    """Letters and digits alone, of the one form of names."""
    return "".join(filter(str.isalnum, tidy(text)))


def layout(rng: random.Random, folder: Path) -> None:
    """Empty files in random folders, with or without a table."""
    depth = rng.randint(1, 3)
    chosen = [rng.sample(FOLDERS, rng.randint(1, 3)) for _ in range(depth)]
    for number in range(rng.randint(2, 9)):
        parts = [rng.choice(names) for names in chosen][
            : rng.choice((depth, depth, depth, rng.randint(0, depth)))
        ]
        place = folder.joinpath(*parts)
        place.mkdir(parents=True, exist_ok=True)
        stem = f"p{number if rng.random() < 0.7 else 0}{rng.choice(('', '', '_mask'))}"
        (place / f"{stem}{rng.choice(('.jpg', '.png'))}").touch()
    if rng.random() < 0.3:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("p*.*")]
        lines = [f"{file},{rng.choice(('cat', 'dog', ''))}" for file in files]
        (folder / "labels.csv").write_text("\n".join(["file,tags", *lines]), "utf-8")
    content = read_folder(folder, ignore_unlisted=rng.random() < 0.3)
    assert len(set(content.files)) == len(content.files) == len(content.splits)
    named = {tidy(part) for file in content.files for part in PurePosixPath(file).parts[:-1]} | {"cat", "dog"}
    assert set(content.class_names) <= named
    assert not {name for name in content.class_names if split_of(name)} - {"train"}
    for file, split in zip(content.files, content.splits, strict=True):
        assert ".hydra" not in file
        assert split == "test" or "test" not in map(split_of, PurePosixPath(file).parts[:-1]), (file, split)


def image_bytes(rng: random.Random, folder: Path) -> None:
    """An encoded image with some of its bytes changed, cut or doubled."""
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 255, (12, 16, 3), np.uint8)
    form, mode = rng.choice(FORMS)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8) if mode == "I;16" else image.convert(mode)
    image.save(file, form)
    data = bytearray(file.getvalue())
    for _ in range(rng.randint(0, 6)):
        place = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[place] = rng.randrange(256)
        elif change == 1:
            data[place : place + rng.randint(1, 9)] = b""
        elif change == 2:
            data[place:place] = bytes(rng.choices(range(256), k=rng.randint(1, 9)))
        else:
            del data[max(20, place) :]
    path = folder / "a.png"
    path.write_bytes(bytes(data))
    with suppress(UserError):
        label = read_mask(path, (12, 16), 20)
        assert (label.shape, label.dtype) == ((12, 16), np.uint8)
        assert label.max(initial=0, where=label != 255) <= 20
    found = read_image(path, upright=True, max_pixels=10**6, max_side=rng.choice((None, 8)))
    assert (found.ndim, found.shape[2], found.dtype) == (3, 3, np.uint8)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "tag files": tag_file, "folders": layout, "image bytes": image_bytes,
}  # fmt: skip


def run(kind: str, cases: int, seconds: float = 600) -> tuple[int, int]:
    """Try the first cases of a kind, as many as time allows; return how many were answered and refused."""
    end, answered, refused = time.monotonic() + seconds, 0, 0
    for case in range(cases):
        if time.monotonic() > end:
            break
        folder = Path(tempfile.mkdtemp())
        try:
            KINDS[kind](random.Random(f"{kind} {case}"), folder)  # noqa: S311
            answered += 1
        except UserError as error:
            refused += 1
            if not str(error).isprintable():
                raise AssertionError(f"{kind}, case {case}") from error
        except Exception as error:
            raise AssertionError(f"{kind}, case {case}") from error
        finally:
            shutil.rmtree(folder)
    return answered, refused


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:] if word.isdigit()]
    for each in KINDS:
        counts = run(each, *given)
        print(f"{each}: {counts[0]} answered, {counts[1]} refused")
