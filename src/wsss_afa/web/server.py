"""Serve a page to this computer: no request to another host, no file but what the page made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from wsss_afa.errors import UserError
from wsss_afa.web.drawing import asset

_LOCAL = ("127.0.0.1", "localhost", "::1")
_POLICY = (
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "font-src 'self' data:",
    "object-src 'none'", "base-uri 'self'", "form-action 'self'", "frame-ancestors 'none'",
)  # fmt: skip
_HEADERS = {
    "content-security-policy": "; ".join(_POLICY),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Browsers then ask no other host, whatever a page says."""
_UPLOAD = "50mb"


class Server:
    """Serves a page while it runs; whoever asks before waits until it does.

    Args:
        build: Makes the page; it is called where events are handled.
        host: Address that is listened on.
        port: Of the page; 0 takes a free one.

    Raises:
        UserError: The address cannot be used.
    """

    def __init__(self, build: Callable[[], gr.Blocks], host: str, port: int):
        self._build, self._host = build, host
        if not 0 <= port <= 65535:
            raise UserError(f"port={port}, need 0 to 65535: set another port")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            problem = f"host={host} port={port} cannot be used ({error.strerror})"
            raise UserError(f"{problem}: set another port") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None

    def run(self) -> None:
        """Serve until Ctrl-C, or until somebody stops it."""
        with suppress(KeyboardInterrupt):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        application = _application(self._build(), self._host)
        config = uvicorn.Config(application, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        await self._server.serve([self._socket])

    def stop(self) -> None:
        """Let `run`, in another thread, come to its end."""
        assert self._server is not None, "it serves"
        self._server.should_exit = True


def _application(page: gr.Blocks, host: str) -> Any:
    page.queue(api_open=False)
    theme = gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    application: Any = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, "/", allowed_paths=[],
        show_error=False, max_file_size=_UPLOAD, ssr_mode=False, footer_links=[], run_history=False,
        pwa=False, mcp_server=False, theme=theme, css=asset("page.css"),
    )  # fmt: skip
    if host in _LOCAL:  # a name that somebody else's page points here is refused
        application = TrustedHostMiddleware(application, [*_LOCAL, "[::1]"])
    return _with_headers(application)


def _with_headers(application: Any) -> Any:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_with(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await application(scope, receive, send_with)

    return answer
