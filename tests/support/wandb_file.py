"""Read back what W&B wrote offline: its ``run-*.wandb`` is a log of records as LevelDB's, each a protobuf."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_HEADER, _BLOCK = 7, 32768
_FULL, _LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """All records of a file, in order."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = _HEADER, b""
    while position + 7 <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # a chunk's head does not fit into the rest of the block
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)  # checksum, length, kind of chunk
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def isolated(home: Path) -> dict[str, str]:
    """An environment that knows no W&B account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return kept | {"HOME": str(home), "NETRC": str(home / "netrc"), "OMP_NUM_THREADS": "1"}


class Run:
    """What an offline run holds.

    Args:
        folder: ``offline-run-*``.
    """

    def __init__(self, folder: Path):
        (path,) = folder.glob("*.wandb")
        self.files = folder / "files"
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "config":
                _update(self.config, record.config.update)
            elif kind == "summary":
                _update(self.summary, record.summary.update)
            elif kind == "history":
                self.history.append(_update({}, record.history.item))
            elif kind == "artifact":
                self.artifacts.append(record.artifact)

    def logged(self, key: str) -> dict[int, Any]:
        """Values of a key by step."""
        return {row["trainer/global_step"]: row[key] for row in self.history if key in row}

    def table(self, key: str, step: int) -> list[dict[str, Any]]:
        """Rows of a table by column."""
        content = json.loads((self.files / self.logged(key)[step]["path"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = target
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)
    return target
