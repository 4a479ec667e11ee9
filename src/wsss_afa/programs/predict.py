"""Predict images: ``wsss-afa predict ckpt=FILE source=FOLDER``. One that fails stops no other."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.progress import track

from wsss_afa.data.own_output import RESULTS, open_folder
from wsss_afa.errors import UserError, plain_console, say
from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import from_records
from wsss_afa.inference.formats.writers import check_formats, write_formats
from wsss_afa.inference.image_files import find_images, output_names
from wsss_afa.inference.prediction import BACKGROUND
from wsss_afa.inference.predictor import Predictor, Sizes, trained_side
from wsss_afa.methods.recipe import load
from wsss_afa.reports.visualize import voc_palette


def predict_all(
    predictor: Predictor, images: Sequence[Path], tags: Sequence[str] | None, out: Path, cams: bool
) -> Iterator[dict[str, Any]]:
    """Predict one image after the other and write its pictures; a failure is an answer too."""
    for path, name in zip(images, output_names(images), strict=True):
        record: dict[str, Any] = {"file": str(path)}
        try:
            yield record | predictor(path, tags).save(out, name, cams)
        except UserError as error:
            yield record | {"error": str(error)}


def describe(cfg: DictConfig, predictor: Predictor) -> dict[str, Any]:
    """What all images have in common, as plain values."""
    names = [BACKGROUND, *predictor.class_names]
    return {
        "checkpoint": str(cfg.ckpt),
        "protocol": OmegaConf.to_container(cfg.protocol, resolve=True),
        **{name: getattr(predictor.sizes, name) for name in ("long_side", "tile", "overlap")},
        "tags": as_list(cfg.tags),
        "class_names": names,
        "palette": voc_palette(len(names)).tolist(),
    }


def open_predictor(cfg: DictConfig) -> Predictor:
    """The predictor that the configuration describes."""
    method = load(cfg.ckpt, cfg.trust)
    side = trained_side(method) if cfg.long_side == "auto" else cfg.long_side
    sizes = Sizes(side, cfg.tile, cfg.overlap, cfg.max_pixels)
    protocol = instantiate(cfg.protocol, mean=method.mean, std=method.std)
    return Predictor(method, str(cfg.device), protocol, sizes)


def as_list(value: object) -> list[str] | None:
    """Texts of a setting that is one or a list of them."""
    return None if value is None else list(map(str, value if isinstance(value, ListConfig) else [value]))


def report(records: Sequence[dict[str, Any]], left_out: Sequence[Path], out: Path) -> list[str]:
    """Print what was done, and return the errors."""
    errors = [record["error"] for record in records if "error" in record]
    say("predicted", f"{len(records) - len(errors)} of {len(records)} images")
    if left_out:
        kinds = Counter(path.suffix.lower() or "no ending" for path in left_out).most_common(9)
        kind = ", ".join(f"{suffix} {count}" for suffix, count in kinds)
        say("left out", f"{len(left_out)} without the ending of an image: {kind}")
    for error in errors:
        say("failed", error)
    say("written", out)
    return errors


def run(cfg: DictConfig) -> float:
    """Predict all images and return their number; those that fail are printed before the error."""
    out, tags, console = open_folder(cfg.out), as_list(cfg.tags), plain_console()
    images, left_out = find_images(as_list(cfg.source) or [], out)
    predictor = open_predictor(cfg)
    predictor.choose(tags)
    check_formats(formats := as_list(cfg.format) or [], predictor.class_names)
    records: list[dict[str, Any]] = []
    answers = predict_all(predictor, images, tags, out, cfg.cams)
    bar = track(answers, "predicting", len(images), console=console, disable=not console.is_terminal)
    try:
        for record in bar:
            records.append(record)
    except KeyboardInterrupt:
        console.print(f"stopped after {len(records)} of {len(images)} images")
        sys.exit(130)
    finally:
        complete = len(records) == len(images)
        content = describe(cfg, predictor) | {"complete": complete, "images": records}
        write_whole(out / RESULTS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for path in write_formats(formats, out, from_records(records, out), predictor.class_names):
        say("written", path)
    if errors := report(records, left_out, out):
        several = f"{len(errors)} of {len(images)} images failed: mend what is listed above and in {RESULTS}"
        raise UserError(errors[0] if len(images) == 1 else several)
    return float(len(images))
