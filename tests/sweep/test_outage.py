"""A study whose MLflow server is down whenever it is needed: it waits, and loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.mlflow_server import Gate, Server
from tests.support.programs import ProgramRunner
from tests.support.questions import write_questions

from lorahydra import LoRATuner
from lorahydra.errors import StoreUnavailableError
from lorahydra.names import State
from lorahydra.sweep.catalog import find_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.service,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),
]


class Outages(logging.Handler):
    """Takes the server away at moments that the log tells, and gives it back to who says that he waits."""

    def __init__(self, gate: Gate, moments: list[str], *, for_good: bool = False) -> None:
        super().__init__(logging.INFO)
        self.gate, self.moments, self.for_good = gate, moments, for_good
        self.waits = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self.moments and text.startswith(self.moments[0]):
            del self.moments[0]
            self.gate.close()
        elif "waiting for it" in text:
            self.waits += 1
            if not self.for_good:
                self.gate.open()


@pytest.fixture
def gate(place: Path, own_cache: Path, programs: ProgramRunner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server(programs, place)
    server.start()
    gate = Gate(server.port)
    yield gate
    gate.close()
    server.kill()


def run(model: Path, gate: Gate, outages: Outages, *overrides: str) -> None:
    write_questions(Path("rows.jsonl"))
    settings = [
        *("model.device=cpu", "evaluation=minilm", "evaluation.max_new_tokens=6", "training.max_steps=2"),
        *(f"tracking.uri=http://127.0.0.1:{gate.port}", "tracking.system_metrics=false", "hydra/sweeper/pruner=none"),
        "training.learning_rate=tag(log, interval(1e-1, 9e-1))",
    ]
    logger = logging.getLogger("lorahydra")
    logger.addHandler(outages)
    try:
        LoRATuner(model=model, data="rows.jsonl", n_trials=2, study="s", overrides=[*settings, *overrides]).run()
    finally:
        logger.removeHandler(outages)


def test_it_is_waited_for_everywhere(tiny_model: Path, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    caplog.set_level(logging.INFO)
    moments = ["Trial 0 begins"]
    outages = Outages(gate, moments, for_good=True)
    with pytest.raises(StoreUnavailableError, match="the study is kept, go on with: lorahydra studies resume s"):
        run(tiny_model, gate, outages, "tracking.retry_seconds=0.2")
    assert find_study("s").finished == 0

    gate.open()
    moments = ["Study s is resumed", "Trial 1 begins", "Study s: 1 of 2 trials", "Best value"]
    outages = Outages(gate, moments)
    run(tiny_model, gate, outages)
    assert moments == []
    assert outages.waits == 4
    assert find_study("s").state is State.COMPLETE

    client = MlflowClient(f"http://127.0.0.1:{gate.port}")
    [experiment] = [entry for entry in client.search_experiments() if entry.name == "lorahydra"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["lorahydra.state"] for run in runs if run.info.status == "FINISHED"} == {"complete"}
    assert all(run.info.status != "RUNNING" for run in runs)
    assert client.get_model_version_by_alias("lorahydra-s", "champion").version
