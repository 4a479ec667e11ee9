"""What all tabs share: a method with photos, the review of them, and what is done with both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wsss_afa.data.images import read_image, read_mask
from wsss_afa.errors import UserError
from wsss_afa.files import write_whole
from wsss_afa.inference.formats.labelled import from_names
from wsss_afa.inference.formats.writers import check_formats, write_formats
from wsss_afa.web.labeller import Labeller, Photo, Pixels, Settings, enlarge
from wsss_afa.web.review import PHOTOS, Review

_SPLITS = {"accept": "train", "paint": "val"}


@dataclass
class Session:
    """A method with photos, the review of them, and the command that opened both."""

    labeller: Labeller
    review: Review
    checkpoint: str
    """SHA-256 of the weights."""
    given: tuple[str, ...]
    """Overrides of the command."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Of the photos, by name."""
        return {photo.name: i for i, photo in enumerate(self.labeller.photos)}

    def begin(self, settings: Settings) -> list[str]:
        """Start the queue of these settings, or go on with it; return the photos that it lacks."""
        return self.review.begin(settings._asdict() | {"checkpoint": self.checkpoint})

    def propose(self, name: str, settings: Settings) -> None:
        """Label a photo and add it to the queue."""
        image, tags = self.labeller.read(self.places[name]), self.labeller.photos[self.places[name]].tags
        label = self.labeller.label_of(image, tags, settings)
        self.review.propose(name, label, self.labeller.sureness(image, label))

    def shown(self, name: str) -> Pixels:
        """The label (h, w) that a photo of the queue has now, in the size in which the method sees it."""
        size = self.labeller.read(self.places[name]).shape[:2]
        return read_mask(self.review.shown(name), size, reduced=True)

    def decide(self, name: str, decision: str, painted: Pixels | None = None) -> None:
        """Write a decision, the mask in the photo's own size, and the file of tags.

        The mask is what was ``painted`` (h, w), or else what is shown; of ``reject`` there is none.
        """
        mask = None
        if decision != "reject":
            label = self.shown(name) if painted is None else painted
            path = self.labeller.photos[self.places[name]].path
            mask = enlarge(label, read_image(path, upright=True).shape[:2])
        self.review.decide(name, decision, mask)
        text = json.dumps(_coco(self.kept(), self.review.decisions, self.labeller.class_names))
        write_whole(self.review.root / PHOTOS, text + "\n")

    def kept(self) -> list[Photo]:
        """The photos that have a mask."""
        return [photo for photo in self.labeller.photos if self.review.decisions.get(photo.name) in _SPLITS]

    def hand_on(self, formats: Sequence[str]) -> list[Path]:
        """Write the masks in the forms of other tools; return where they are.

        A UserError says that a form cannot hold the classes' names, or that there is no mask yet.
        """
        kept, review, names = self.kept(), self.review, self.labeller.class_names
        check_formats(["png", *formats], names)
        if not kept:
            raise UserError("no mask is accepted or painted yet: decide some first")
        photos = {photo.name: photo.path for photo in kept}
        masks = [review.mask_path(name, review.decisions[name]) for name in photos]
        labelled = from_names(list(photos), masks, photos)
        return [review.root, *write_formats(formats, review.root, labelled, names)]


def _coco(photos: Sequence[Photo], decisions: dict[str, str], class_names: Sequence[str]) -> dict[str, Any]:
    """Tags of photos in COCO's form: the accepted are for training, the painted for validation."""
    splits = [_SPLITS[decisions[photo.name]] for photo in photos]
    tags = [(i, tag) for i, photo in enumerate(photos) for tag in photo.tags]
    return {
        "images": [
            {"id": i, "file_name": photo.file, "split": split}
            for i, (photo, split) in enumerate(zip(photos, splits, strict=True))
        ],
        "annotations": [{"id": n, "image_id": i, "category_id": tag + 1} for n, (i, tag) in enumerate(tags)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names, 1)],
    }
