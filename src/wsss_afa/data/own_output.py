"""What this library wrote is never data: runs, sweeps and predictions that lie among the images."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wsss_afa.errors import UserError

RESULTS = "predictions.json"
"""Beside the pictures of predictions: what was predicted of every image, and how."""
REVIEW = "review.jsonl"
"""Beside reviewed masks: what was decided of every photo."""


def is_own_output(folder: Path) -> bool:
    """Whether a program of ours wrote a folder: of a run, a sweep, predictions or a review, or ``runs``."""
    if any((folder / name).exists() for name in (".hydra", "multirun.yaml", RESULTS, REVIEW)):
        return True
    depths = ("*", "*/*", "*/*/*") if folder.name == "runs" else ()
    return any(next(folder.glob(f"{depth}/.hydra"), None) for depth in depths)


def open_folder(out: str) -> Path:
    """Make the folder of a program's results, and be sure that it can be written to; else a UserError."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"out={out} cannot be written ({error.strerror}): set out anew") from error
    return folder
