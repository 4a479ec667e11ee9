"""The command lines that do what a page shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wsss_afa.cli.corrections import shell
from wsss_afa.cli.in_python import setting
from wsss_afa.web.labeller import Settings
from wsss_afa.web.review import DECISIONS, PHOTOS
from wsss_afa.web.session import Session

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


def second_stage_command(session: Session) -> str:
    """The training on accepted masks, validated on painted ones if there are any; empty without any."""
    data, review, decided = session.labeller.data, session.review, session.review.count()
    if not decided["accept"]:
        return ""
    words = ["+experiment=second_stage", "data=folder", _word("data.root", data.root)]
    words += [_word("data.labels", review.root / PHOTOS), "data.ignore_unlisted=true"]
    words += [_word("data.masks", review.root / str(DECISIONS["paint"]))] if decided["paint"] else []
    words += [_word("data.max_side", "null" if data.max_side is None else data.max_side)]
    return _command("train", [*words, _word("labels", review.root / str(DECISIONS["accept"]))])


def _word(name: str, value: str | Path | int) -> str:
    plain = re.fullmatch(r"[\w./-]+", str(value))
    return f"{name}={value}" if plain else setting(name, value)


def _command(program: str, words: Sequence[str]) -> str:
    return " ".join(map(shell, ["wsss-afa", program, *words]))
