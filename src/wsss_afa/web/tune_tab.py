"""The tab *Tune*: the same settings on ten photos, and the command that writes such labels for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from wsss_afa.errors import UserError
from wsss_afa.reports.visualize import Panel, paint_label
from wsss_afa.web.commands import labels_command
from wsss_afa.web.controls import MODEL, Controls, answers, read, warn
from wsss_afa.web.drawing import figures, labels_in, legend
from wsss_afa.web.labeller import Settings
from wsss_afa.web.session import Session

SHOWN = 10
"""Photos that are looked at."""
_SIDE = 400


class TuneTab:
    """Builds the tab within the page that is being built, and answers it."""

    def __init__(self, session: Session):
        self.session, photos = session, session.labeller.photos
        trained = [i for i, photo in enumerate(photos) if photo.split == "train"]
        count = min(SHOWN, len(trained))
        self.places = [trained[n * len(trained) // count] for n in range(count)]
        self.controls = Controls(session.labeller)
        self.result = gr.HTML(elem_id="tuned", min_height=300)
        self.command = gr.Textbox(
            label="The command that writes these labels for every training photo", lines=3, buttons=["copy"],
            interactive=False, elem_id="command",
        )  # fmt: skip
        self.first: dict[str, Any] = {
            "fn": answers(self.show), "inputs": self.controls.all, "outputs": [self.result, self.command],
            "concurrency_id": MODEL, "trigger_mode": "always_last", "show_progress": "minimal",
        }  # fmt: skip
        gr.on(self.controls.changes, **self.first)

    def show(self, *values: Any) -> Iterator[tuple[str, str]]:
        """The labels of more and more photos, and the command."""
        labeller, settings = self.session.labeller, read(*values)
        command, panels, labels = self.command_for(settings), list[Panel](), list[Any]()
        for place in self.places:
            try:
                labels.append(labeller.label(place, settings))
            except UserError as error:
                warn(error)
                continue
            picture = paint_label(labeller.read(place), labels[-1])
            panels.append(Panel(labeller.photos[place].name, picture))
            yield f"<p>{len(panels)} of {len(self.places)}…</p>" + self._pictures(panels, labels), command
        yield self._pictures(panels, labels), command

    def _pictures(self, panels: Sequence[Panel], labels: Sequence[Any]) -> str:
        return legend(labels_in(labels), self.session.labeller.class_names) + figures(panels, _SIDE, "many")

    def command_for(self, settings: Settings) -> str:
        """The call of ``pseudo_labels`` that does the same."""
        scored = self.session.labeller.has_background(settings.source)
        return labels_command(self.session.given, settings, scored, "labels")
