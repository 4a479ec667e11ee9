"""How reading a folder and drawing from it grow with its photographs, in time and in memory.

    python benchmarks/names.py --counts 1000 10000 100000 1000000

Photographs are names of empty files, a thousand in a folder, with two tags each in a CSV; nothing opens them
before training does. Each number of them is measured in a process of its own. The power is that of the number
between a row and the one before it.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scaling import peak_memory
from timing import print_table

from wsss_afa.callbacks.binding import RunData
from wsss_afa.data.folder.content import TaggedFolder, read_folder
from wsss_afa.data.folder.photos import find_photos
from wsss_afa.data.sampler import DrawSampler

CLASSES = 80
LATER = 1_000_000
"""The step at which a run is resumed."""


def make(root: Path, count: int) -> None:
    """Empty files in folders of a thousand, and the table of their tags."""
    rows = ["file,tags"]
    for i in range(count):
        if i % 1000 == 0:
            (root / f"{i // 1000:04}").mkdir()
        file = f"{i // 1000:04}/COCO_train_{i:012}.jpg"
        (root / file).touch()
        rows.append(f"{file},class {i % CLASSES};class {(i // CLASSES) % CLASSES}")
    (root / "labels.csv").write_text("\n".join(rows))


def measure(root: Path, count: int) -> dict[str, float]:
    """Seconds of each part, and GiB that the process holds at most above what it began with."""
    before, found = peak_memory("cpu"), {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        found[name] = time.perf_counter() - start
        return result

    timed("list", lambda: find_photos(root))
    photos = TaggedFolder(timed("list, tags and split", lambda: read_folder(root)), "train")
    sampler = [DrawSampler(len(photos), 8, 2 * LATER, start_step=step) for step in (0, LATER)]
    timed("first batch", lambda: next(iter(sampler[0])))
    timed("of a resumed run", lambda: next(iter(sampler[1])))
    data: Any = SimpleNamespace(class_names=photos.class_names, train_set=photos, val_set=None)
    record = RunData(data).record()
    timed("photographs compared", lambda: RunData(data).differences(record))
    return found | {"GiB": peak_memory("cpu") - before}


def main(words: Sequence[str] | None = None) -> None:
    """Print a table: a row for each number of photographs, a column and its power for each part."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--folder", type=Path, help="where the files are made, and removed again")
    options = parser.parse_args(words)
    rows: list[dict[str, float]] = []
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            make(Path(name), count)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (Path(name), count)))
    cells = []
    for i, (count, row) in enumerate(zip(options.counts, rows, strict=True)):
        line = [f"{count}"]
        for part, value in row.items():
            before = rows[i - 1][part] if i else 0.0
            grows = before > 0 and value > 0
            power = f"^{math.log(value / before, count / options.counts[i - 1]):.2f}" if grows else ""
            line += [f"{value:.4f} {power:>6}"]
        cells.append(line)
    print_table("a folder of photographs, seconds", ["photographs", *rows[0]], cells)


if __name__ == "__main__":
    main()
