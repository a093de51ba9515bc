"""As much of the hub's protocol, on the loopback, as huggingface_hub needs to make a repository and commit files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

REGULAR = {"uploadMode": "regular", "shouldIgnore": False}


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address, and what it holds: `repositories` as they were asked for, and `files` by their path."""
    held: dict[str, Any] = {"repositories": [], "files": {}}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != "Bearer hf_right":
                return self.answer({"error": "Invalid username or password."}, 401)
            if self.path == "/api/repos/create":
                held["repositories"].append(json.loads(body))
                return self.answer({"url": f"{address}/me/it"})
            if "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                return self.answer({"files": [{"path": path, **REGULAR} for path in paths]})
            if "/commit/" not in self.path:  # the card's metadata are checked
                return self.answer({"errors": [], "warnings": []})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    held["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{address}/me/it/commit/1", "commitOid": "1", "success": True})

        def answer(self, content: object, code: int = 200) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address, held
    finally:
        server.shutdown()
        server.server_close()
