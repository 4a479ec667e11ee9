"""The tab *Try*: one photo, of the folder or uploaded, and all that the method makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from wsss_afa.data.images import read_image
from wsss_afa.errors import printable
from wsss_afa.reports.evaluation import data_uri
from wsss_afa.reports.visualize import Panel, label_png, paint_heat, paint_label
from wsss_afa.web.controls import MODEL, Controls, answers, read
from wsss_afa.web.drawing import figures, labels_in, legend, score_table, text
from wsss_afa.web.labeller import Labeller, Pixels, enlarge

_SIDE, _LISTED = 720, 8
Chosen = int | str
"""Place of a photo in the folder, or the path of one that was uploaded."""


class TryTab:
    """Builds the tab within the page that is being built, and answers it."""

    def __init__(self, labeller: Labeller):
        self.labeller = labeller
        names = [printable(name) for name in labeller.class_names]
        photos = [(printable(photo.name), i) for i, photo in enumerate(labeller.photos)]
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Dropdown(photos, value=0, label="Photo of the folder", elem_id="photo")
                upload = gr.Image(
                    label="or another",
                    type="filepath",
                    height=140,
                    sources=["upload", "clipboard"],
                    elem_id="upload",
                )
                tags = gr.Dropdown(
                    [(name, i) for i, name in enumerate(names)], value=list(labeller.photos[0].tags),
                    label="Tags", info="none: every class is allowed", multiselect=True, elem_id="tags",
                )  # fmt: skip
                controls = Controls(labeller)
                download = gr.Button("Download the mask", size="sm")
            with gr.Column(scale=3, min_width=300):
                self.result = gr.HTML(elem_id="tried", min_height=300)
        chosen, link = gr.State(0), gr.HTML(elem_id="mask", visible="hidden")
        show: dict[str, Any] = {"fn": answers(self.show), "inputs": [chosen, tags, *controls.all]}
        show |= {"outputs": self.result, "concurrency_id": MODEL, "trigger_mode": "always_last"}
        photo.input(lambda i: (i, list(labeller.photos[i].tags)), photo, [chosen, tags]).then(**show)
        upload.upload(answers(self.take), upload, [chosen, tags], concurrency_id=MODEL).then(**show)
        gr.on([tags.input, *controls.changes], **show)
        click = "() => document.querySelector('#mask a').click()"
        download.click(answers(self.mask), show["inputs"], link, concurrency_id=MODEL).success(js=click)
        self.first = show

    def label(self, image: Pixels, tags: Sequence[int], *values: Any) -> Pixels:
        """The label (H, W) of an image (H, W, 3); one without tags may have every class."""
        return self.labeller.label_of(image, tags or range(len(self.labeller.class_names)), read(*values))

    def take(self, path: str) -> tuple[str, list[int]]:
        """An uploaded photo, with the classes that the classifier finds in it as tags."""
        scores = self.labeller.scores(self._read(path))
        return path, np.flatnonzero(scores >= 0.5).tolist()

    def show(self, chosen: Chosen, tags: Sequence[int], *values: Any) -> str:
        """Mask, heat maps and scores of a photo."""
        labeller, image = self.labeller, self._read(chosen)
        label, scores = self.label(image, tags, *values), labeller.scores(image)
        areas = np.bincount(label.ravel(), minlength=256)[1 : len(scores) + 1] / label.size
        order = sorted(range(len(scores)), key=lambda i: (i in tags, areas[i], scores[i]), reverse=True)
        heated = list(tags) or order[:3]
        heats = zip(heated, labeller.heat_maps(image, heated), strict=False)
        maps = [Panel(labeller.class_names[i], paint_heat(image, heat)) for i, heat in heats]
        rows = [(labeller.class_names[i], float(scores[i]), float(areas[i])) for i in order[:_LISTED]]
        mask = figures([Panel("image", image), Panel("mask", paint_label(image, label))], _SIDE, "two")
        heat = f"<h4>Where the classifier sees a class</h4>{figures(maps, _SIDE // 2)}" if maps else ""
        return mask + legend(labels_in([label]), labeller.class_names) + heat + score_table(rows)

    def mask(self, chosen: Chosen, tags: Sequence[int], *values: Any) -> str:
        """A link to the mask, in the photo's own size."""
        path = self._path(chosen)
        label = self.label(self._read(chosen), tags, *values)
        whole = enlarge(label, read_image(path, upright=True).shape[:2])
        address = data_uri(label_png(whole), "image/png")
        return f'<a download="{text(path.stem)}.png" href="{address}">mask</a>'

    def _path(self, chosen: Chosen) -> Path:
        return Path(chosen) if isinstance(chosen, str) else self.labeller.photos[chosen].path

    def _read(self, chosen: Chosen) -> Pixels:
        return read_image(self._path(chosen), upright=True, max_side=self.labeller.data.max_side)
