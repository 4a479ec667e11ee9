"""The controls that say how labels are made, alike on every tab, and how mistakes are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

from wsss_afa.errors import UserError
from wsss_afa.inference.label_source import SEGMENTATION
from wsss_afa.web.drawing import text
from wsss_afa.web.labeller import Labeller, Settings

MODEL = "model"
"""Events of this name wait for each other: the network works for one at a time."""
_TITLES = {
    SEGMENTATION: "seg: segmentation",
    "cam": "cam: activation maps",
    "par": "par: activation maps, refined by PAR",
    "affinity": "affinity: maps propagated along it, then refined",
    "static": "static: frozen parts alone",
}


class Controls:
    """Source, background scores and CRF; the settings are those of ``all``, in this order."""

    def __init__(self, labeller: Labeller):
        self.labeller, default = labeller, labeller.default()
        choices = [(_TITLES.get(each, each), each) for each in labeller.sources]
        self.source = gr.Dropdown(choices, value=default.source, label="Source", elem_id="source")
        scored = labeller.has_background(default.source)
        span = {"minimum": 0.0, "maximum": 1.0, "step": 0.05, "visible": scored, "min_width": 240}
        with gr.Row():
            self.low = gr.Slider(
                value=default.low, label="Background score", info="more is background", **span
            )
            self.high = gr.Slider(
                value=default.high, label="Undecided up to", info="ignored between both", **span
            )
        self.crf = gr.Checkbox(default.crf, label="Dense CRF on top")
        self.all = [self.source, self.low, self.high, self.crf]
        self.source.change(self._hide, self.source, [self.low, self.high], show_progress="hidden")

    @property
    def changes(self) -> list[Any]:
        """What happens when somebody sets one of them."""
        return [self.source.input, self.low.release, self.high.release, self.crf.input]

    def _hide(self, source: str) -> list[Any]:
        scored = self.labeller.has_background(source)
        return [gr.update(visible=scored), gr.update(visible=scored)]


def read(source: str, low: float, high: float, crf: bool) -> Settings:
    """Settings of the values of `Controls.all`."""
    return Settings(source, round(low, 2), round(max(low, high), 2), crf)


def answers(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose `UserError` appears as a message on the page."""

    @wraps(handler)
    def plain(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except UserError as error:
            raise _message(error) from None

    @wraps(handler)
    def step_by_step(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except UserError as error:
            raise _message(error) from None

    return step_by_step if isgeneratorfunction(handler) else plain


def warn(error: UserError) -> None:
    """Show on the page what was left out."""
    gr.Warning(text(error), title="Left out")


def _message(error: UserError) -> gr.Error:
    return gr.Error(text(error), title="This cannot be done", print_exception=False)
