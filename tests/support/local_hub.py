"""A server on localhost that plays the hub: models are made, files are committed, and given back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler

from file_server import LocalServer


class LocalHub(LocalServer):
    """Keeps ``files`` by "user/name/file"; whoever has no token writes nothing."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._give(body=True)

    def do_HEAD(self) -> None:
        self._give(body=False)

    def _give(self, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path.partition("?")[0])
        content = self.server.files.get(f"{match[1]}/{match[2]}") if match else None
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body:
            self.wfile.write(content or b"")

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.headers.get("Authorization"):
            self._answer({"error": "no token"}, 401)
        elif self.path == "/api/repos/create":
            about = json.loads(body)
            self._answer({"url": f"{self.server.url}/{about['organization']}/{about['name']}"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines() if line])
        else:
            self._answer({"errors": [], "warnings": []})

    def _commit(self, name: str, lines: list[dict]) -> None:
        for file in (line["value"] for line in lines if line["key"] == "file"):
            self.server.files[f"{name}/{file['path']}"] = base64.b64decode(file["content"])
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def _answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
