"""The page: three tabs over one session, in letters and colours that come from this computer alone."""

from __future__ import annotations

import os
from pathlib import Path

import gradio as gr

from wsss_afa.web.drawing import text
from wsss_afa.web.review_tab import ReviewTab
from wsss_afa.web.session import Session
from wsss_afa.web.try_tab import TryTab
from wsss_afa.web.tune_tab import TuneTab


def build_page(session: Session) -> gr.Blocks:
    """Build the page; nothing is served yet."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "OTEL_SDK_DISABLED": "true"}  # nothing is reported
    labeller = session.labeller
    about = f"{len(labeller.photos)} photos of {text(Path(labeller.data.root).name)}"
    with gr.Blocks(title="wsss_afa: review", analytics_enabled=False) as page:
        gr.HTML(f"<h2>Masks from tags</h2><p>{about}, {len(labeller.class_names)} classes</p>")
        with gr.Tabs():
            with gr.Tab("Try"):
                tried = TryTab(labeller)
            with gr.Tab("Tune") as tab:
                tuned = TuneTab(session)
                tab.select(**tuned.first)
            with gr.Tab("Review"):
                reviewed = ReviewTab(session, tuned.controls.all)
        page.load(**reviewed.first)
        page.load(**tried.first)
    return page
