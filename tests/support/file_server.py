"""A server of files on localhost that knows ranges and misbehaves as told."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class LocalServer(ThreadingHTTPServer):
    """Answers on a free port of localhost while it is entered; it has ``files`` by name."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class FileServer(LocalServer):
    """Serves ``files``; each request takes the next fault off ``faults``, and is honest once there is none.

    Faults: a status such as 503; ``cut N`` sends N bytes and hangs up; ``wrong`` sends other bytes;
    ``longer`` and ``shorter`` lie about Content-Length; ``no ranges`` sends all of it; ``shifted`` sends
    another range; ``no length`` says nothing about length; ``silent`` never answers.
    """

    block_on_close = True
    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.faults: list[str | int] = []
        self.ranges: list[str | None] = []
        """The range that each request asked for."""
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no event."""

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        super().__exit__(*error)


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        content = self.server.files.get(self.path.lstrip("/"))
        if fault == "silent":
            self.server.closing.wait(5)
        elif isinstance(fault, int):
            self.send_error(fault)
        elif content is None:
            self.send_error(404)
        else:
            self.answer(content, fault)

    def answer(self, content: bytes, fault: str) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop = 0, len(content)
        if match and fault != "no ranges":
            start, stop = int(match[1]), min(stop, int(match[2] or stop) + 1)
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        first = start + 1 if fault == "shifted" else start
        body = content[first:stop]
        length = len(body) + {"longer": 50, "shorter": -50}.get(fault, 0)
        part = (start, stop) != (0, len(content))
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(content)}")
        if fault != "no length":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "wrong":
            body = bytes(byte ^ 255 for byte in body)
        if fault.startswith("cut"):
            body = body[: int(fault.split()[1])]
        self.wfile.write(body)
