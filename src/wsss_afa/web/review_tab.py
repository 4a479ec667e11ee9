"""The tab *Review*: the folder's photos one by one, the least sure first; accept, reject or paint each."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import gradio as gr
import numpy as np

from wsss_afa.data.images import encode_png, read_image
from wsss_afa.errors import UserError, printable
from wsss_afa.inference.formats.writers import WRITERS
from wsss_afa.reports.evaluation import data_uri, shrink
from wsss_afa.reports.visualize import Panel, voc_palette
from wsss_afa.types import IGNORE_INDEX
from wsss_afa.web.commands import second_stage_command
from wsss_afa.web.controls import MODEL, answers, read, warn
from wsss_afa.web.drawing import asset, text
from wsss_afa.web.labeller import Photo, Pixels
from wsss_afa.web.session import Session

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
        self.status = gr.HTML(elem_id="status", min_height=90)
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
        missing = self.session.begin(settings := read(*values))
        for name in progress.tqdm(missing, desc="labelling", unit="photos"):
            try:
                self.session.propose(name, settings)
            except UserError as error:
                warn(error)
        return self._show(self.session.review.next_open())

    def act(self, event: gr.EventData) -> tuple[dict[str, Any], str, str]:
        """What a button or a key of the desk asks for."""
        review, order = self.session.review, self.session.review.order
        name = self.session.labeller.photos[event.place].name
        if event.what in ("next", "previous"):
            step = 1 if event.what == "next" else -1
            return self._show(order[(order.index(name) + step) % len(order)])
        painted = self._decode(event.label, name) if event.what == "paint" else None
        self.session.decide(name, event.what, painted)
        return self._show(review.next_open(name))

    def write(self, formats: list[str]) -> str:
        """Write the masks in the forms of other tools, and say where they are."""
        return "".join(f"<p>written {text(path)}</p>" for path in self.session.hand_on(formats))

    def _decode(self, drawn: str | None, name: str) -> Pixels:
        """The painted label, which arrives as an address that holds a PNG."""
        try:
            content = base64.b64decode(str(drawn).partition(",")[2], validate=True)
        except binascii.Error as error:
            raise UserError("the painted mask did not arrive: reload the page") from error
        label = read_image(io.BytesIO(content))[..., 0]
        highest = label.max(initial=0, where=label != IGNORE_INDEX)
        fits = label.shape == self.session.shown(name).shape
        if not fits or highest > len(self.session.labeller.class_names):
            raise UserError("the painted mask does not fit the photo: reload the page")
        return np.ascontiguousarray(label)

    def _show(self, name: str | None) -> tuple[dict[str, Any], str, str]:
        review = self.session.review
        decided = review.count()
        counts = ", ".join(f"{decided[each]} {word}" for each, word in _WORDS.items())
        left = sum(each not in review.decisions for each in review.sureness)
        status = f"<p><b>{left} to review</b>, {counts}. All is kept in {text(review.root)}.</p>{_ABOUT}"
        if not review.sureness:
            status = "<p>There is no queue yet. Choose settings under <b>Tune</b>, then make it.</p>"
        view = {} if name is None else self._view(self.session.labeller.photos[self.session.places[name]])
        return view, status, second_stage_command(self.session)

    def _view(self, photo: Photo) -> dict[str, Any]:
        """What the desk shows of a photo."""
        review, place = self.session.review, self.session.places[photo.name]
        ((_, picture),) = shrink([Panel("", self.session.labeller.read(place))], _SIDE)
        return {
            "place": place,
            "title": printable(photo.name),
            "photo": picture,
            "label": data_uri(encode_png(self.session.shown(photo.name)), "image/png"),
            "tags": [tag + 1 for tag in photo.tags],
            "about": f"{review.order.index(photo.name) + 1} of {len(review.order)}, "
            f"agreement {review.sureness[photo.name]:.0%}",
            "decision": _WORDS.get(review.decisions.get(photo.name, ""), ""),
        }
