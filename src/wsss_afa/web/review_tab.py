"""The tab *Review*: the folder's photos one by one, the least sure first; accept, reject or paint each."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import gradio as gr
import numpy as np

from wsss_afa.data.images import encode_png, read_image, read_mask
from wsss_afa.errors import UserError, printable
from wsss_afa.inference.formats.labelled import from_names
from wsss_afa.inference.formats.writers import WRITERS, check_formats, write_formats
from wsss_afa.reports.evaluation import data_uri, shrink
from wsss_afa.reports.visualize import Panel, voc_palette
from wsss_afa.types import IGNORE_INDEX
from wsss_afa.web.commands import second_stage_command, write_photos
from wsss_afa.web.controls import MODEL, answers, read, warn
from wsss_afa.web.drawing import asset, text
from wsss_afa.web.labeller import Photo, Pixels, Session, enlarge

_SIDE = 1024
_ABOUT = (
    "<p class='note'>The least sure comes first. Agreement is the mean IoU of the mask with what the network "
    "segments when it is not told the tags.</p>"
)
_WORDS = {"accept": "accepted", "reject": "rejected", "paint": "painted"}


class ReviewTab:
    """Builds the tab within the page that is being built, and answers it; settings are those of *Tune*."""

    def __init__(self, session: Session, settings: list[Any]):
        self.session = session
        self.places = {photo.name: i for i, photo in enumerate(session.labeller.photos)}
        self.status = gr.HTML(elem_id="status", min_height=60)
        names = ["background", *map(printable, session.labeller.class_names)]
        self.desk = gr.HTML(
            {}, html_template=asset("desk.html"), js_on_load=asset("desk.js"), elem_id="desk",
            names=names, colours=voc_palette(len(names)).tolist(),
        )  # fmt: skip
        make = gr.Button("Make the queue with the settings of Tune", size="sm", elem_id="make")
        with gr.Accordion("Hand on", open=False, elem_id="hand_on"):
            formats = gr.CheckboxGroup(list(WRITERS), label="Accepted and painted masks in the form of")
            write, written = gr.Button("Write", size="sm"), gr.HTML()
            command = gr.Textbox(
                label="Train a second stage on them", lines=4, buttons=["copy"], interactive=False,
                elem_id="second", placeholder="Accept some masks first.",
            )  # fmt: skip
        shown = [self.desk, self.status, command]
        make.click(answers(self.make), settings, shown, concurrency_id=MODEL, show_progress_on=self.status)
        self.desk.act(answers(self.act), None, shown, show_progress="hidden")
        write.click(answers(self.write), formats, written)
        self.first: dict[str, Any] = {"fn": answers(self.resume), "outputs": shown}

    def resume(self) -> tuple[dict[str, Any], str, str]:
        """Where the review stood when it was left."""
        made = self.session.review.settings()
        if made is not None and not self.session.review.sureness:
            self.session.review.begin(made)
        return self._show(self.session.review.next_open())

    def make(self, *values: Any, progress: gr.Progress = gr.Progress()) -> tuple[dict[str, Any], str, str]:  # noqa: B008
        """Label all photos with these settings, and go to the one that is least sure."""
        review, labeller, settings = self.session.review, self.session.labeller, read(*values)
        missing = review.begin(settings._asdict() | {"ckpt": self.session.checkpoint})
        for name in progress.tqdm(missing, desc="labelling", unit="photos"):
            try:
                label = labeller.label(self.places[name], settings)
                sure = labeller.sureness(labeller.read(self.places[name]), label)
            except UserError as error:
                warn(error)
                continue
            review.propose(name, label, sure)
        return self._show(review.next_open())

    def act(self, event: gr.EventData) -> tuple[dict[str, Any], str, str]:
        """What a button or a key of the desk asks for."""
        review, order = self.session.review, self.session.review.order
        place, what = event.place, event.what
        name = self.session.labeller.photos[place].name
        if what in ("next", "previous"):
            step = 1 if what == "next" else -1
            return self._show(order[(order.index(name) + step) % len(order)])
        self.decide(name, what, event.label)
        return self._show(review.next_open(name))

    def decide(self, name: str, decision: str, drawn: str | None) -> None:
        """Write a decision; ``drawn`` is the painted label as an address that holds a PNG."""
        review, mask = self.session.review, None
        if decision != "reject":
            label = self._label(name)
            label = label if decision == "accept" else self._decode(drawn, label)
            photo = self.session.labeller.photos[self.places[name]]
            mask = enlarge(label, read_image(photo.path, upright=True).shape[:2])
        review.decide(name, decision, mask)
        write_photos(review, self.session.labeller)

    def write(self, formats: list[str]) -> str:
        """Write the masks that were accepted or painted in the forms of other tools."""
        review, labeller = self.session.review, self.session.labeller
        check_formats(["png", *formats], labeller.class_names)
        kept = [name for name, decision in review.decisions.items() if decision != "reject"]
        if not kept:
            raise UserError("no mask is accepted or painted yet: decide some first")
        paths = [review.mask_path(name, review.decisions[name]) for name in kept]
        images = {photo.name: photo.path for photo in labeller.photos}
        masks = from_names(kept, paths, images)
        written = [review.root, *write_formats(formats, review.root, masks, labeller.class_names)]
        return "".join(f"<p>written {text(path)}</p>" for path in written)

    def _label(self, name: str) -> Pixels:
        """The label that a photo has now, in the size that is shown."""
        size = self.session.labeller.read(self.places[name]).shape[:2]
        return read_mask(self.session.review.shown(name), size, reduced=True)

    def _decode(self, drawn: str | None, before: Pixels) -> Pixels:
        try:
            content = base64.b64decode(str(drawn).partition(",")[2], validate=True)
        except binascii.Error as error:
            raise UserError("the painted mask did not arrive: reload the page") from error
        label = read_image(io.BytesIO(content))[..., 0]
        classes = len(self.session.labeller.class_names)
        if label.shape != before.shape or label.max(initial=0, where=label != IGNORE_INDEX) > classes:
            raise UserError("the painted mask does not fit the photo: reload the page")
        return np.ascontiguousarray(label)

    def _show(self, name: str | None) -> tuple[dict[str, Any], str, str]:
        review, labeller = self.session.review, self.session.labeller
        decided = review.count()
        counts = ", ".join(f"{decided[each]} {word}" for each, word in _WORDS.items())
        left = sum(each not in review.decisions for each in review.sureness)
        status = f"<p><b>{left} to review</b>, {counts}. All is kept in {text(review.root)}.</p>{_ABOUT}"
        if not review.sureness:
            status = "<p>There is no queue yet. Choose settings under <b>Tune</b>, then make it.</p>"
        command = second_stage_command(review, labeller, labeller.data.root) if decided["accept"] else ""
        return {} if name is None else self._view(labeller.photos[self.places[name]]), status, command

    def _view(self, photo: Photo) -> dict[str, Any]:
        """What the desk shows of a photo."""
        review, place = self.session.review, self.places[photo.name]
        ((_, picture),) = shrink([Panel("", self.session.labeller.read(place))], _SIDE)
        return {
            "place": place,
            "title": printable(photo.name),
            "photo": picture,
            "label": data_uri(encode_png(self._label(photo.name)), "image/png"),
            "tags": [tag + 1 for tag in photo.tags],
            "about": f"{review.order.index(photo.name) + 1} of {len(review.order)}, "
            f"agreement {review.sureness[photo.name]:.0%}",
            "decision": _WORDS.get(review.decisions.get(photo.name, ""), ""),
        }
