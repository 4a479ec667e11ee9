"""``metrics.csv``: rows are appended, and a new column has the whole file written anew and then renamed.

Lightning's logger empties the file before it writes it with a new column, and deletes it when it starts: a
process that is killed there leaves nothing.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from wsss_afa.files import write_whole


class MetricsFile(CSVLogger):
    """Writes every logged value to ``metrics.csv`` of a folder, which is never shorter than it was.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="")
        self._rows = MetricsRows(Path(save_dir) / "metrics.csv")

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsRows:
        """The rows."""
        return self._rows


class MetricsRows:
    """The rows of a file, and how many of them are in it."""

    def __init__(self, path: Path):
        self.path, self.rows, self.saved = path, list[dict[str, Any]](), 0
        self._columns: list[str] = []

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Add a row."""
        values = {name: each.item() if isinstance(each, Tensor) else each for name, each in metrics.items()}
        self.rows.append({**values, "step": step})

    def log_hparams(self, _: Mapping[str, Any]) -> None:
        """Settings lie beside the file already."""

    def save(self) -> None:
        """Bring the file up to date; where that failed before, all of it is written anew."""
        pending = self.rows[self.saved if self._columns else 0 :]
        columns = sorted({*self._columns, *(name for row in pending for name in row)})
        if columns == self._columns and self.path.is_file():
            new, self._columns = self._text(pending, columns), []  # until it is written
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(new)
        elif self.rows:
            write_whole(self.path, ",".join(columns) + "\n" + self._text(self.rows, columns))
        self.saved, self._columns = len(self.rows), columns

    def keep(self, count: int) -> int:
        """Go on after the first rows of the file that is there; how many of so many it lacks.

        Of a file that lacks some, a copy stays as ``metrics.csv.damaged``.
        """
        found = _read(self.path)
        self.rows, self._columns, self.saved = found[:count], [], 0
        if len(found) < count and self.path.is_file():
            self.path.replace(f"{self.path}.damaged")
        if self.rows:
            self.save()
        else:
            self.path.unlink(missing_ok=True)
        return count - len(self.rows)

    def sync(self) -> None:
        """Have what is saved on the disk itself, as far as the disk lets itself be asked."""
        with suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    @staticmethod
    def _text(rows: list[dict[str, Any]], columns: list[str]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


def _read(path: Path) -> list[dict[str, str]]:
    """The whole rows of a file; none where it is missing or torn."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if None not in row and None not in row.values() and row.get("step")]
