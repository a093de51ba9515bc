"""A W&B server of the loopback: as much of its protocol as wandb needs to open runs, stream rows and end them.

    python wandb_server.py PORT-FILE [healthy | hanging | failing | full]

A hanging server takes connections and never answers, a failing one says 500 to everything; a full one opens runs but
takes no rows (402: the quota is used up). GET /runs tells what it holds: {run id: {"config", "rows", "ended", "named",
"summary", ...}}; GET /artifacts: {id: {"committed", "asked"}}; GET /uploads: the files by their path, an artifact's
below /uploads/ID/.
"""

import gzip
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

ME, PROJECT = "me", "cotnet"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    runs: ClassVar[dict[str, dict[str, Any]]] = {}
    artifacts: ClassVar[dict[str, dict[str, Any]]] = {}
    uploads: ClassVar[dict[str, str]] = {}
    mode = "healthy"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._in_order():
            self._answer({"/artifacts": self.artifacts, "/uploads": self.uploads}.get(self.path, self.runs))

    def do_PUT(self) -> None:
        self.uploads[self.path] = self._body().decode(errors="replace")
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._in_order():
            return
        if self.path == "/graphql":
            query = json.loads(body)
            operation = query["operationName"] or query["query"].split("(")[0].split()[-1]
            given = query.get("variables") or {}
            found = self._artifact(operation, given) if "Artifact" in operation else self._data(operation, given)
            self._answer({"data": found})
        elif self.mode == "full":
            self._answer({"error": "the quota is used up"}, 402)
        else:
            self._stream(json.loads(body))
            self._answer({"exitcode": None, "limits": {}})

    def _in_order(self) -> bool:
        if self.mode == "hanging":
            time.sleep(3600)
        if self.mode == "failing":
            self._answer({"error": "out of order"}, 500)
        return self.mode in ("healthy", "full")

    def _data(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "RunResumeStatus":
            return {"model": self._project() | {"bucket": self._bucket(given["name"])}}
        if operation == "UpsertBucket":
            run = self.runs.setdefault(given["name"], {"config": "{}", "rows": [], "starts": 0, "ended": None})
            run["config"] = given["config"] or run["config"]
            names = ("displayName", "groupName", "tags", "notes")  # a later call need not say them again
            run["named"] = run.get("named", {}) | {name: given[name] for name in names if given.get(name)}
            run["starts"] += given["id"] is None
            return {"upsertBucket": {"bucket": self._bucket(given["name"]), "inserted": True}}
        if operation == "CreateRunFiles":
            address = f"http://{self.headers['Host']}/uploads/"
            files = [{"name": name, "uploadUrl": address + name} for name in given["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {"viewer": {"id": "1", "entity": ME, "username": ME, "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _artifact(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """What creates an artifact, uploads its manifest and files, and commits it."""
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            asked = given["input"]
            created = {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING"}
            self.artifacts[created["id"]] = {"committed": False, "asked": asked}
            return {"createArtifact": {"artifact": created | {"artifactSequence": {"id": "1", "latestArtifact": None}}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            owner = given.get("artifactID") or given["artifactManifestID"]
            file = self._upload(owner, "manifest")
            name = operation[0].lower() + operation[1:]
            return {name: {"artifactManifest": {"id": owner, "file": file}}}
        if operation == "CreateArtifactFiles":
            asked = given["input"]["artifactFiles"]
            files = [self._upload(one["artifactID"], one["name"]) for one in asked]
            return {"createArtifactFiles": {"files": {"edges": [{"node": file} for file in files]}}}
        if operation == "CommitArtifact":
            artifact = self.artifacts[given["artifactID"]]
            artifact["committed"] = True
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": artifact["asked"]["digest"]}}}
        return {}

    def _upload(self, owner: str, name: str) -> dict[str, Any]:
        address = f"http://{self.headers['Host']}/uploads/{owner}/{name}"
        return {"id": name, "name": name, "displayName": name, "uploadUrl": address, "uploadHeaders": [],
                "storagePath": name, "uploadMultipartUrls": None, "artifact": {"id": owner}}  # fmt: skip

    def _project(self) -> dict[str, Any]:
        return {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ME}}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        tail = json.dumps([json.dumps(row) for row in run["rows"][-1:]])
        counts = {"historyLineCount": len(run["rows"]), "eventsLineCount": 0, "logLineCount": 0}
        texts = {
            "summaryMetrics": "{}",
            "historyTail": tail,
            "eventsTail": "[]",
            "config": run["config"],
            "wandbConfig": '{"t": 1}',
        }
        return {"id": name, "name": name, "displayName": name, "project": self._project()} | counts | texts

    def _stream(self, message: dict[str, Any]) -> None:
        run = self.runs[urlsplit(self.path).path.split("/")[4]]
        history = message.get("files", {}).get("wandb-history.jsonl")
        if history:
            run["rows"][history["offset"] :] = [json.loads(line) for line in history["content"]]
        summary = message.get("files", {}).get("wandb-summary.json")
        if summary:
            run["summary"] = json.loads(summary["content"][-1])
        if message.get("complete"):
            run["ended"] = message.get("exitcode")

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, content: object, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_server(folder: Path, mode: str = "healthy") -> Iterator[tuple[str, subprocess.Popen]]:
    """Its address and process."""
    port = folder / f"{mode}.port"
    process = subprocess.Popen([sys.executable, __file__, str(port), mode], stderr=subprocess.DEVNULL)
    try:
        while not (port.exists() and port.read_text()):
            time.sleep(0.02)
        yield f"http://{port.read_text()}", process
    finally:
        process.kill()
        process.wait()


def held(address: str, what: str = "runs") -> dict[str, Any]:
    """What the server holds: runs, artifacts or uploads."""
    with urllib.request.urlopen(f"{address}/{what}") as answer:
        return json.load(answer)


if __name__ == "__main__":
    Handler.mode = sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Path(sys.argv[1]).write_text(f"127.0.0.1:{server.server_port}")
    server.serve_forever()
