"""What a training run logged, read back from its ``metrics.csv``."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_log(path: Path) -> dict[str, pd.Series]:
    """Read the numbers that a run logged; whatever is no number is left out.

    The file counts steps from 0; the series, by column, are indexed by steps that are counted from 1.
    """
    try:
        text = pd.read_csv(path, dtype=str, encoding_errors="replace", on_bad_lines="skip")
    except (pd.errors.ParserError, pd.errors.EmptyDataError):
        return {}
    if "step" not in text:
        return {}
    log = text.apply(pd.to_numeric, errors="coerce").dropna(subset="step")
    log = log.groupby(log["step"].astype(int) + 1).last()  # several rows may tell of a step
    return {str(name): column.dropna() for name, column in log.items()}
