"""An adapter's folder as an MLflow model: whole without lorahydra, without the base's weights, loaded and served."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.ports import free_port
from tests.support.waiting import wait_for

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ModelError
from lorahydra.inference.adapted_model import conversations, open_adapter
from lorahydra.names import ADAPTER_DIR
from lorahydra.tracking import TrackedRun, add_model_files, register_model, write_model_files

StartRun = Callable[..., TrackedRun]
REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS = [f"What is {n} and {n}?" for n in range(20)]
ASK = """
import json, sys
sys.path = [path for path in sys.path if path != sys.argv[2]]
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import lorahydra
used = sorted(name for name in sys.modules if name.startswith("lorahydra"))
print(json.dumps([lorahydra.__file__, model.predict(json.loads(sys.argv[3])), model.predict("Hi"), used]))
"""


@pytest.fixture
def model(tiny_adapter: Path, tmp_path: Path) -> Path:
    """An adapter's folder that is an MLflow model as well."""
    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "model"))
    write_model_files(folder)
    return folder


def expected(adapter: Path, prompts: list[str] = PROMPTS) -> list[str]:
    with open_adapter(adapter, device="cpu") as model:
        return model.answer(conversations(prompts))


def asked_elsewhere(uri: str, environment: dict[str, str] | None = None) -> tuple[Any, ...]:
    """Load and ask it in a process that has no lorahydra but that in the model."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", ASK, uri, str(REPOSITORY / "src"), json.dumps(PROMPTS)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=variables | {"MLFLOW_DISABLE_TELEMETRY": "true"} | (environment or {}),
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def test_what_is_in_it(model: Path, tiny_adapter: Path, tiny_model: Path) -> None:
    described = yaml.safe_load((model / "MLmodel").read_text("utf-8"))
    assert described["metadata"]["base_model"] == str(tiny_model)
    assert described["metadata"]["base_digest"].startswith("sha256:")
    assert json.loads(described["signature"]["inputs"]) == [{"type": "any", "required": True}]
    assert {entry["name"]: entry["default"] for entry in json.loads(described["signature"]["params"])} == {
        "max_new_tokens": 12,
        "tuned": True,
    }
    assert (model / "input_example.json").is_file()
    needed = (model / "requirements.txt").read_text("utf-8").splitlines()
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    )
    for line in needed:
        name, version = line.split("==")
        assert pinned.get(name, version) == version
    # PEFT's files are as they were, and nothing of the base model's size came along.
    for file in tiny_adapter.iterdir():
        assert (model / file.name).read_bytes() == file.read_bytes()
    weights = [path for path in model.rglob("*") if path.suffix in (".safetensors", ".gguf", ".bin")]
    assert [path.name for path in weights] == ["adapter_model.safetensors"]
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 1_500_000
    assert not list(model.rglob("__pycache__"))


@pytest.mark.slow
def test_it_answers_by_itself_and_the_base_comes_along_when_asked(
    tiny_adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder, base = tmp_path / "model", tmp_path / "base"
    shutil.copytree(tiny_model, base)
    shutil.copytree(tiny_adapter, folder)
    origin = json.loads((folder / "lorahydra.json").read_text("utf-8"))
    origin["model"]["name_or_path"] = str(base)
    (folder / "lorahydra.json").write_text(json.dumps(origin), "utf-8")
    write_model_files(folder, with_base=True)
    shutil.rmtree(base)
    file, answers, one, used = asked_elsewhere(str(folder))
    assert file == str(folder / "code" / "lorahydra" / "__init__.py")
    assert answers == expected(tiny_adapter)
    assert [one] == [expected(tiny_adapter, ["Hi"])]
    assert not [name for name in used if name.split(".")[1:2] in (["tracking"], ["sweep"], ["cli"])]


def test_a_base_that_is_gone_cannot_come_along(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "model"))
    origin = json.loads((folder / "lorahydra.json").read_text("utf-8"))
    origin["model"]["name_or_path"] = str(tmp_path / "gone")
    (folder / "lorahydra.json").write_text(json.dumps(origin), "utf-8")
    with pytest.raises(ModelError, match="does not exist"):
        write_model_files(folder, with_base=True)


def test_writing_twice_changes_nothing_but_the_time(model: Path) -> None:
    before = sorted(path.relative_to(model) for path in model.rglob("*"))
    (model / "code" / "lorahydra" / "stale.py").touch()
    write_model_files(model)
    assert sorted(path.relative_to(model) for path in model.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.service
def test_registered_loaded_and_served(start: StartRun, uri: str, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "out" / "adapter"
    shutil.copytree(tiny_adapter, adapter)
    with start() as run:
        run.artifact(adapter, ADAPTER_DIR)
    config = TrackingConfig(uri=uri)
    best = Path(shutil.copytree(tiny_adapter, tmp_path / "best"))
    write_model_files(best)
    add_model_files(config, run.run_id, best)
    register_model(config, run.run_id, "m", tags={}, description="from `here`")
    store = {"MLFLOW_TRACKING_URI": uri}
    assert asked_elsewhere("models:/m@champion", store)[1] == expected(tiny_adapter)

    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/m@champion", "--env-manager", "local"]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # `mlflow models serve` starts the uvicorn that is on PATH.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", "")])
    with (tmp_path / "serve.log").open("wb") as log:
        serving = subprocess.Popen(
            [*command, "-p", str(port)],
            env=variables | store | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/ping") is not None)
        for body in ({"inputs": PROMPTS}, {"dataframe_split": {"columns": ["prompt"], "data": [[p] for p in PROMPTS]}}):
            assert answers(f"http://127.0.0.1:{port}/invocations", body) == {"predictions": expected(tiny_adapter)}
        chat = {"messages": [{"role": "user", "content": PROMPTS[3]}]}
        assert answers(f"http://127.0.0.1:{port}/invocations", chat) == expected(tiny_adapter, [PROMPTS[3]])
    finally:
        os.killpg(serving.pid, 9)
        serving.wait()


def answers(address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read().strip() or b"true")
    except (ConnectionError, urllib.error.URLError):
        return None
