"""The forms, beside PNG, in which labels are written for other tools."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from wsss_afa.errors import UserError
from wsss_afa.inference.formats.coco import write_coco
from wsss_afa.inference.formats.cvat import check_cvat, write_cvat
from wsss_afa.inference.formats.label_studio import write_label_studio
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.inference.formats.labelme import write_labelme
from wsss_afa.inference.formats.yolo import write_yolo

Writer = Callable[[Path, Sequence[Labelled], Sequence[str]], Path]
"""Writes all labels below a folder, with the names of the C classes; returns what to hand on."""
WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "cvat": write_cvat,
    "labelstudio": write_label_studio,
    "labelme": write_labelme,
}


def check_formats(formats: Collection[str], class_names: Sequence[str]) -> None:
    """Refuse, by a UserError, formats that are not known or cannot hold the names; PNG is always written."""
    if isinstance(formats, str) or "png" not in formats or set(formats) - {"png", *WRITERS}:
        known = ", ".join(WRITERS)
        raise UserError(f"format={formats}: need [png], or [png, coco] with any of {known}, made of the PNGs")
    if "cvat" in formats:
        check_cvat(class_names)


def write_formats(
    formats: Collection[str], out: Path, images: Sequence[Labelled], class_names: Sequence[str]
) -> Iterator[Path]:
    """Write each of the formats but PNG, and yield what to hand on."""
    for name, write in WRITERS.items():
        if name in formats:
            yield write(out, images, class_names)
