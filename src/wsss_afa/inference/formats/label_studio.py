"""Labels as predictions that Label Studio imports, of brushes, and its labelling interface.

A brush is a run-length coded picture: of every pixel four channels, 255 where it is drawn. A run of n equal
values is a bit 1, two bits that choose how many bits hold n - 1, these, and the value's eight bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.reports.visualize import voc_palette

_SIZES = (3, 4, 8, 16)  # bits that may hold the length of a run
_CHANNELS = 4


def write_label_studio(out: Path, images: Sequence[Labelled], class_names: Sequence[str]) -> Path:
    """Write ``label_studio.json``, tasks with predictions, and ``label_studio.xml``, their interface.

    Images are named as files of a local storage, from the folder above theirs on.
    """
    tasks = [
        {
            "data": {"image": f"/data/local-files/?d={quote(image.place)}"},
            "predictions": [{"model_version": "wsss_afa", "result": _results(image.read(), class_names)}],
        }
        for image in images
    ]
    write_whole(out / "label_studio.json", json.dumps(tasks, ensure_ascii=False) + "\n")
    write_whole(out / "label_studio.xml", _interface(class_names))
    return out / "label_studio.json"


def _results(label: NDArray[np.uint8], class_names: Sequence[str]) -> list[dict[str, Any]]:
    height, width = label.shape
    return [
        {
            "id": f"class{value}", "type": "brushlabels", "from_name": "label", "to_name": "image",
            "original_width": width, "original_height": height, "image_rotation": 0,
            "value": {"format": "rle", "rle": encode(label == value), "brushlabels": [name]},
        }
        for value, name in enumerate(class_names, 1)
        if (label == value).any()
    ]  # fmt: skip


def encode(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a mask (H, W) as a brush."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    bits = [f"{flat.size * _CHANNELS:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        bits += _run(length, f"{255 * int(flat[start]):08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _run(length: int, value: str) -> Iterator[str]:
    while length:
        part = min(length, 1 << _SIZES[-1])
        index, size = next((i, size) for i, size in enumerate(_SIZES) if part <= 1 << size)
        yield f"1{index:02b}{part - 1:0{size}b}{value}"
        length -= part


def _interface(class_names: Sequence[str]) -> str:
    colours = ("#" + bytes(colour).hex() for colour in voc_palette(1 + len(class_names))[1:])
    labels = "".join(
        f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>\n"
        for name, colour in zip(class_names, colours, strict=True)
    )
    brushes = f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n'
    return f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{brushes}</View>\n'
