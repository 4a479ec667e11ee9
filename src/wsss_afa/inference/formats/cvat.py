"""Labels as the archive that CVAT imports as "Segmentation mask 1.1"."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import Labelled
from wsss_afa.reports.visualize import voc_palette


def check_cvat(class_names: Sequence[str]) -> None:
    """Refuse, by a UserError, names that its list of colours cannot hold."""
    for name in class_names:
        if ":" in name or name.startswith("#"):
            problem = f"format=cvat: the class {name!r} has a colon or begins with #"
            raise UserError(f"{problem}, which CVAT's labelmap.txt cannot hold: choose another format")


def write_cvat(out: Path, images: Sequence[Labelled], class_names: Sequence[str]) -> Path:
    """Write ``cvat.zip``: a picture of each label in the classes' colours, which ``labelmap.txt`` names.

    Ignored pixels are background there.
    """
    names = ["background", *class_names]
    palette = voc_palette().copy()
    palette[len(names) :] = 0
    lines = (f"{name}:{','.join(map(str, palette[i]))}::" for i, name in enumerate(names))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr(
            zipfile.ZipInfo("labelmap.txt"), "\n".join(["# label:color_rgb:parts:actions", *lines, ""])
        )
        listed = "".join(f"{_quoted(image.name)}\n" for image in images)
        file.writestr(zipfile.ZipInfo("ImageSets/Segmentation/default.txt"), listed)
        for image in images:
            picture = io.BytesIO()
            Image.fromarray(palette[image.read()]).save(picture, format="PNG")
            file.writestr(zipfile.ZipInfo(f"SegmentationClass/{image.name}.png"), picture.getvalue())
    write_whole(out / "cvat.zip", archive.getbuffer())
    return out / "cvat.zip"


def _quoted(name: str) -> str:
    return f'"{name}"' if any(map(str.isspace, name)) else name
