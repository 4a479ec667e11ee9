"""The command lines that do what a page shows, and the file of tags that the second stage reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsss_afa.cli.corrections import shell
from wsss_afa.cli.in_python import setting
from wsss_afa.files import write_whole
from wsss_afa.web.labeller import Labeller, Settings
from wsss_afa.web.review import DECISIONS, PHOTOS, Review

_SHARED = re.compile(r"[+~]*(ckpt|trust|data|protocol|dense_crf)\b")
"""Words of the app's own command that make its labels what they are."""


def labels_command(given: Sequence[str], settings: Settings, has_background: bool, out: str) -> str:
    """The call of ``pseudo_labels`` that writes such labels; ``given`` are the app's overrides."""
    words = [word for word in given if _SHARED.match(word)]
    words += [] if any(word.startswith("data=") for word in words) else ["data=folder"]
    words += [f"source={settings.source}"]
    if has_background:
        band = settings.high > settings.low
        both = f"[{settings.low:g},{settings.high:g}]"
        words.append(f"background={both if band else format(settings.low, 'g')}")
    words += ["crf=true"] if settings.crf else []
    return _command("pseudo_labels", [*words, _word("out", out)])


def second_stage_command(review: Review, labeller: Labeller, root: str) -> str:
    """The training on accepted masks, which is validated on corrected ones where there are any."""
    decided = review.count()
    words = ["+experiment=second_stage", "data=folder", _word("data.root", root)]
    words += [_word("data.labels", review.root / PHOTOS), "data.ignore_unlisted=true"]
    words += [_word("data.masks", review.root / str(DECISIONS["paint"]))] if decided["paint"] else []
    words += [_word("data.max_side", "null" if labeller.data.max_side is None else labeller.data.max_side)]
    return _command("train", [*words, _word("labels", review.root / str(DECISIONS["accept"]))])


def write_photos(review: Review, labeller: Labeller) -> None:
    """Write tags of the photos with a mask in COCO's form: the accepted train, the corrected validate."""
    splits = {"accept": "train", "paint": "val"}
    kept = [photo for photo in labeller.photos if review.decisions.get(photo.name) in splits]
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": photo.file,
             "split": splits[review.decisions[photo.name]]}
            for i, photo in enumerate(kept)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": tag + 1}
            for n, (i, tag) in enumerate((i, tag) for i, photo in enumerate(kept) for tag in photo.tags)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(labeller.class_names, 1)],
    }  # fmt: skip
    write_whole(review.root / PHOTOS, json.dumps(content) + "\n")


def _word(name: str, value: str | Path | int) -> str:
    plain = re.fullmatch(r"[\w./-]+", str(value))
    return f"{name}={value}" if plain else setting(name, value)


def _command(program: str, words: Sequence[str]) -> str:
    return " ".join(map(shell, ["wsss-afa", program, *words]))
