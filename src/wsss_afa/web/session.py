"""What all tabs of the page share."""

from __future__ import annotations

from typing import NamedTuple

from wsss_afa.web.labeller import Labeller
from wsss_afa.web.review import Review


class Session(NamedTuple):
    """A method with photos, the review of them, the checkpoint, and the overrides of the command."""

    labeller: Labeller
    review: Review
    ckpt: str
    given: tuple[str, ...]
