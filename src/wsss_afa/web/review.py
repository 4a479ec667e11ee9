"""What people decide about the labels of a folder's photos, kept so that no kill loses any of it.

A folder holds all of it: ``queue.jsonl`` (settings, and how sure each label is) with ``proposed/``, the
decisions in ``review.jsonl`` (a line each, on the disk before the next begins; a photo's last one counts),
``masks/`` (accepted labels), ``corrected/`` (painted ones) and ``photos.json`` (both, with tags, as data).
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_afa.cli.run_folder import LOCK
from wsss_afa.data.label_folder import label_path
from wsss_afa.data.own_output import REVIEW
from wsss_afa.errors import UserError
from wsss_afa.files import sync_folder, write_whole
from wsss_afa.reports.visualize import save_label

QUEUE, PHOTOS = "queue.jsonl", "photos.json"
DECISIONS = {"accept": "masks", "paint": "corrected", "reject": None}
"""What may be decided, and the folder that the photo's mask goes to."""


class Review:
    """The decisions on photos, by name, that a folder holds; it is made if there is none.

    A `UserError` says that the folder holds other things, or cannot be written to.
    """

    def __init__(self, root: str | Path, names: Sequence[str]):
        self.root, self.names = Path(root).expanduser().absolute(), list(names)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in self.root.iterdir() if path.name != LOCK]
            if others and REVIEW not in others:
                raise UserError(f"out={root} has files but no {REVIEW}, need a folder of its own: set out")
            (self.root / REVIEW).touch()
        except OSError as error:
            raise UserError(f"out={root} cannot be written ({error.strerror}): set out anew") from error
        self.decisions = {
            line["name"]: line["decision"]
            for line in _read_lines(self.root / REVIEW)
            if line.get("name") in set(names) and line.get("decision") in DECISIONS
        }
        self.sureness: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def order(self) -> list[str]:
        """Photos of the queue, the least sure first."""
        return sorted(self.sureness, key=lambda name: (self.sureness[name], name))

    def count(self) -> Counter[str]:
        """How often each decision was taken."""
        return Counter(self.decisions.values())

    def next_open(self, after: str | None = None) -> str | None:
        """The first photo without a decision, of those behind one if there are any; None if all have one."""
        order = self.order
        start = order.index(after) + 1 if after in self.sureness else 0
        rest = (name for name in [*order[start:], *order[:start]] if name not in self.decisions)
        return next(rest, None)

    def begin(self, settings: Mapping[str, Any]) -> list[str]:
        """Start the queue of these settings, or go on with it; return the photos that it lacks."""
        path, head = self.root / QUEUE, json.loads(json.dumps(settings))
        lines = _read_lines(path)
        if lines[:1] != [head]:
            lines = [head]
            write_whole(path, json.dumps(head) + "\n")
        known = set(self.names)
        self.sureness = {line["name"]: line["sure"] for line in lines[1:] if line.get("name") in known}
        return [name for name in self.names if name not in self.sureness]

    def settings(self) -> dict[str, Any] | None:
        """What the queue in the folder was made with, if there is one."""
        return next(iter(_read_lines(self.root / QUEUE)), None)

    def propose(self, name: str, label: NDArray[np.uint8], sure: float) -> None:
        """Add a photo with its label (h, w) to the queue."""
        save_label(label, label_path(self.root / "proposed", name))
        _append(self.root / QUEUE, {"name": name, "sure": round(sure, 6)})
        self.sureness[name] = round(sure, 6)

    def shown(self, name: str) -> Path:
        """The label that a photo has now: the painted one, or else the one that was proposed."""
        painted = self.decisions.get(name) == "paint"
        return self.mask_path(name, "paint") if painted else label_path(self.root / "proposed", name)

    def decide(self, name: str, decision: str, mask: NDArray[np.uint8] | None = None) -> None:
        """Write a decision, and the mask (H, W) that belongs to all but ``reject``, to the disk itself.

        The mask is there before the decision, and masks of an earlier decision go after it.
        """
        assert (mask is None) == (DECISIONS[decision] is None)
        with self._lock:
            if mask is not None:
                save_label(mask, self.mask_path(name, decision))
            _append(self.root / REVIEW, {"name": name, "decision": decision})
            self.decisions[name] = decision
            for other in DECISIONS.keys() - {decision, "reject"}:
                self.mask_path(name, other).unlink(missing_ok=True)

    def mask_path(self, name: str, decision: str) -> Path:
        """Where the mask of a photo lies that was accepted or painted."""
        return label_path(self.root / str(DECISIONS[decision]), name)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that a kill has torn is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, on the disk itself; it begins anew where a kill has torn the one before."""
    with path.open("a+b") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
