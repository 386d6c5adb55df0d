from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import ADAPTER_DIR
from lorahydra.tracking import TrackedRun, register_model, registered_name

StartRun = Callable[..., TrackedRun]

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


@pytest.fixture
def config(uri: str) -> TrackingConfig:
    return TrackingConfig(uri=uri, system_metrics=False)


def train(start: StartRun, folder: Path, **settings: Any) -> str:
    """A run that has an adapter."""
    adapter = folder / "out" / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (adapter / name).write_bytes(content)
    with start(**settings) as run:
        run.artifact(adapter, ADAPTER_DIR)
    return run.run_id


def downloaded(uri: str, folder: Path) -> dict[str, bytes]:
    import mlflow

    folder.mkdir()
    path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("settings", [{}, {"experiment_name": "with space #1?"}])
def test_adapter_comes_back_from_the_registry(
    start: StartRun,
    config: TrackingConfig,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, str],
) -> None:
    run_id = train(start, tmp_path, **settings)
    tags = {"lorahydra.study": "it's"}
    assert register_model(config, run_id, "Моя студия+1: a/b 'c'", tags=tags) == "1"
    name = registered_name("Моя студия+1: a/b 'c'")
    assert name.startswith("Моя-студия+1-a-b-c-")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", config.uri)  # where MLflow's own functions search
    assert downloaded(f"models:/{name}@champion", tmp_path / "back") == FILES
    version = client.get_model_version_by_alias(name, "champion")
    assert (version.run_id, version.status, version.tags) == (run_id, "READY", tags)


def test_run_has_one_version_of_a_model(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    first, second = (train(start, tmp_path) for _ in range(2))
    assert register_model(config, first, "m", tags={"a": "1"}) == "1"
    assert register_model(config, second, "m", tags={}) == "2"
    assert str(client.get_model_version_by_alias("m", "champion").version) == "2"
    assert register_model(config, first, "m", tags={"a": "2"}) == "1"
    champion = client.get_model_version_by_alias("m", "champion")
    assert (str(champion.version), champion.run_id, champion.tags) == ("1", first, {"a": "1"})
    assert len(client.search_model_versions("name = 'm'")) == 2
    assert register_model(config, first, "n", tags={}) == "1"


def test_run_without_an_adapter(start: StartRun, config: TrackingConfig, client: Any) -> None:
    with start() as run:
        pass
    with pytest.raises(TrackingError, match=f"run {run.run_id} has no artifact folder adapter"):
        register_model(config, run.run_id, "m", tags={})
    with pytest.raises(TrackingError, match="has no run"):
        register_model(config, "0" * 32, "m", tags={})
    assert client.search_model_versions("name = 'm'") == []


def test_faults_of_the_store(
    start: StartRun, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    class SdkError(Exception):
        """What an artifact store's own SDK raises."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise SdkError("no such bucket")

    run_id = train(start, tmp_path)
    monkeypatch.setattr(MlflowClient, "list_artifacts", fail)
    with pytest.raises(TrackingError, match="no such bucket"):
        register_model(config, run_id, "other", tags={})


def test_name_that_a_prompt_has(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    client.register_prompt("m", "Say {{word}}")
    with pytest.raises(TrackingError, match="name m is taken by a prompt"):
        register_model(config, train(start, tmp_path), "m", tags={})


@pytest.mark.parametrize(
    ("name", "clean"),
    [("a/b:c", "a-b-c"), ("..", "model"), ("", "model"), ("x@y?z#1", "x-y-z-1"), ("n" * 300, "n" * 191), ("s.", "s")],
)
def test_a_name_that_mlflow_does_not_take(name: str, clean: str) -> None:
    assert re.fullmatch(f"{re.escape(clean)}-[0-9a-f]{{8}}", registered_name(name))


def test_different_names_are_different_models() -> None:
    names = ["x+y", "x-y", "x y", "x/y", "x", "x-", "x.", "n" * 300, "n" * 301]
    assert len({registered_name(name) for name in names}) == len(names)
    for study in ("lorahydra-x+y", "lorahydra-x-y", "lorahydra-моя_студия.2"):
        assert registered_name(study) == study
