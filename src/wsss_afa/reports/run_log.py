"""What a training run logged, read back from its ``metrics.csv``."""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path


def read_log(path: Path) -> dict[str, dict[int, float]]:
    """Values by step, counted from 1, of every column; what is no number is left out.

    Args:
        path: of the file, whose rows count steps from 0.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
        log: dict[str, dict[int, float]] = {name: {} for name in rows.fieldnames or ()}
        for row in rows:
            for name in log:
                with suppress(KeyError, TypeError, ValueError):
                    log[name][int(row["step"]) + 1] = float(row[name])
    return log
