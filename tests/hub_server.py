"""A Hub in this process: it serves the models below a folder as the Hugging Face Hub does, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _answer(self, whole: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/") and self._model(path):
            return
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        file = self.root / name / rest.partition("/")[2]
        if not rest or not file.is_file():
            self._send(404, b"Entry not found", {"X-Error-Code": "RepoNotFound"}, whole)
            return
        self.asked += [file.name] if whole else []
        data = file.read_bytes()
        self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, whole)

    def _model(self, path: str) -> bool:
        """Answer a question about a model: its commit, or the list of its files."""
        name, tree, _ = path.removeprefix("/api/models/").partition("/tree/")
        name = name.partition("/revision/")[0]
        folder = self.root / name
        if not (folder / "config.json").is_file():
            return False
        files: list[dict[str, Any]] = [
            {"type": "file", "path": each.name, "size": each.stat().st_size, "oid": hashlib.sha1().hexdigest()}
            for each in sorted(folder.iterdir())
        ]
        siblings = [{"rfilename": each["path"]} for each in files]
        about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self._send(200, json.dumps(files if tree else about).encode(), {"Content-Type": "application/json"}, True)
        return True

    def _send(self, status: int, data: bytes, headers: dict[str, str], whole: bool) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if whole:
            self.wfile.write(data)


@contextmanager
def hub(root: Path, cache: Path) -> Iterator[list[str]]:
    """Serve the models below `root` (OWNER/NAME/ or NAME/), with an empty cache. Yield the names of files sent."""
    handler = type("Handler", (_Handler,), {"root": root, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield handler.asked
    server.shutdown()
    thread.join()
    server.server_close()
