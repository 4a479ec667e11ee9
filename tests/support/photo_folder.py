"""A small folder of tagged photos whose names are hostile, and a session of the app on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from recipes import CONF
from untrained import save, scene_recipe, untrained

NASTY = ("<img src=x onerror=alert(1)>", "{{7*7}} ${7*7}", "plain & 'quoted'")
"""Names of the classes."""
NAMES = (
    "<b onmouseover=alert(1)>bold", "two\nlines", "latin \udce9", "{{constructor}}", "${alert(1)}", "-a&b;",
    "p6", "p7", "p8", "p9", "p10", "p11",
)  # fmt: skip
"""Names of the photos, without their endings; the last one has no tag."""


def write_photos(root: Path, side: int = 48) -> Path:
    """Write the photos, coloured noise under a rectangle, and their tags; return the folder."""
    root.mkdir()
    rng, rows = np.random.default_rng(0), []
    for i, name in enumerate(NAMES):
        pixels = rng.integers(0, 120, (side, side + 4 * i, 3), dtype=np.uint8)
        pixels[side // 4 : side // 2, side // 4 : side // 2, i % 3] = 240
        Image.fromarray(pixels).save(root / f"{name}.png")
        tags = [] if i == len(NAMES) - 1 else sorted({NASTY[i % 3], NASTY[i % 2]})
        rows.append({"file": f"{name}.png", "tags": tags, "split": "val" if i == 4 else "train"})
    (root / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


def save_checkpoint(path: Path) -> Path:
    """Write AFA of random weights for the classes, as a folder lists them."""
    return save(untrained(scene_recipe(class_names=sorted(NASTY)), std=2), path)


def open_app(ckpt: Path, photos: Path, out: Path, *overrides: str) -> Any:
    """What the program opens on a command of these settings; the test is skipped without Gradio."""
    reason = "the extra app is not installed"
    program = pytest.importorskip("wsss_afa.programs.app", reason=reason, exc_type=ImportError)
    given = [f"ckpt='{ckpt}'", f"data.root='{photos}'", f"out='{out}'", "device=cpu", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return program.open_session(compose("app", given), given)
