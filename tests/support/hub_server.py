"""A model hub on loopback that takes repositories and commits by the hub's HTTP protocol, with LFS uploads."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


@dataclass
class Hub:
    """What the hub holds."""

    address: str = ""
    visibility: dict[str, str] = field(default_factory=dict)
    """By repository."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository and name."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects, by SHA-256."""
    fails: int = 0
    """Status of all answers, if it is not 0."""
    is_silent: bool = False
    """Whether it does not answer a commit."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def model_hub() -> Iterator[Hub]:
    """A hub with no repositories; it knows one token, which may write to those of `me`."""
    hub, ended = Hub(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if status == 401:
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            self.wfile.write(body)

        def refuse(self) -> bool:
            hub.requests.append(f"{self.command} {self.path}")
            if hub.fails:
                self.answer(hub.fails, {"error": "out of order"})
            elif self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials in Authorization header"})
            else:
                return False
            return True

        def do_GET(self) -> None:
            if self.refuse():
                return
            repo = self.path.removeprefix("/api/models/")
            if repo not in hub.visibility:
                self.answer(404, {"error": "Repository not found"})
            else:
                self.answer(200, {"id": repo, "private": hub.visibility[repo] == "private"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.refuse():
                return
            repo = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
            if self.path == "/api/repos/create":
                wanted = json.loads(body)
                repo = f"{wanted['organization']}/{wanted['name']}"
                if wanted["organization"] != "me":
                    self.answer(403, {"error": "no write access"})
                    return
                hub.visibility[repo] = wanted.get("visibility", "public")
                self.answer(200, {"url": f"{hub.address}/{repo}"})
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"warnings": [], "errors": []})
            elif "/preupload/" in self.path:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    item | {"actions": {"upload": {"href": f"{hub.address}/objects/{item['oid']}"}}}
                    for item in json.loads(body)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                if hub.is_silent:
                    ended.wait()
                self.commit(repo, body)
            else:
                self.answer(400, {"error": f"unknown request {self.path}"})

        def commit(self, repo: str, body: bytes) -> None:
            head, *entries = map(json.loads, body.splitlines())
            assert head["key"] == "header"
            files = hub.files.setdefault(repo, {})
            for entry in entries:
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    assert entry["key"] == "lfsFile"
                    files[value["path"]] = hub.objects[value["oid"]]
            self.answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            name = self.path.removeprefix("/objects/")
            assert hashlib.sha256(content).hexdigest() == name
            hub.objects[name] = content
            self.answer(200, {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
