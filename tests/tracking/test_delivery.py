from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from lorahydra.tracking import operations
from lorahydra.tracking.delivery import Delivery
from lorahydra.tracking.spool import Spool

CALL: Any = {"previews": ("", ""), "assessments": None, "ok": True, "start_ns": 1, "end_ns": 2}


class LosesReplies:
    """A client whose every call is done, and whose first answer of each kind is lost on the way back."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lost: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if name not in self._lost:
                self._lost.add(name)
                raise ConnectionResetError("the answer was lost")
            return result

        return call


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.create(tmp_path / "out")


@pytest.fixture
def run_id(client: Any, tmp_path: Path) -> str:
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "artifacts").as_uri())
    return str(client.create_run(experiment).info.run_id)


def test_sending_twice_changes_nothing(client: Any, run_id: str, spool: Spool) -> None:
    for step in range(50):
        for operation in operations.metrics({"loss": 1.0, "nan": float("nan"), "inf": float("inf")}, step):
            spool.append(operation)
    for operation in (
        *operations.params({"a": 1}),
        *operations.tags({"t": "1"}),
        *operations.tags({"t": "2"}),
    ):
        spool.append(operation)
    path = spool.reserve("f.txt")
    path.write_text("content")
    spool.append(operations.artifact("d/f.txt", owned=str(path.relative_to(spool.folder))))
    spool.append(operations.dataset("d", "0" * 8, "x.jsonl", 3, "training"))
    spool.append(operations.finish("FINISHED", 2_000_000_000_000))

    delivery = Delivery(LosesReplies(client), run_id, spool)
    lost = 0
    while True:
        try:
            if not delivery.step():
                break
        except ConnectionResetError:
            lost += 1
    assert lost == 4, "values, artifact, dataset and end"
    for name in ("loss", "nan", "inf"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == list(range(50))
    stored = client.get_run(run_id)
    assert stored.data.params == {"a": "1"}
    assert stored.data.tags["t"] == "2"
    assert [file.path for file in client.list_artifacts(run_id, "d")] == ["d/f.txt"]
    assert len(stored.inputs.dataset_inputs) == 1
    assert (stored.info.status, stored.info.end_time) == ("FINISHED", 2_000_000_000_000)
    assert not path.exists(), "a copy that was sent takes no room"
    spool.remove()


def test_refused_item_does_not_hold_up_the_others(
    client: Any, run_id: str, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    client.log_param(run_id, "a", "old")
    for operation in (*operations.metrics({"m": 1.0}, 0), *operations.params({"a": "new"})):
        spool.append(operation)
    spool.append(operations.artifact("gone", kept="gone"))
    for operation in operations.metrics({"m": 2.0}, 1):
        spool.append(operation)
    delivery = Delivery(client, run_id, spool)
    while delivery.step():
        pass
    assert [point.value for point in client.get_metric_history(run_id, "m")] == [1.0, 2.0]
    assert client.get_run(run_id).data.params == {"a": "old"}
    refused, gone = caplog.messages
    assert refused.startswith("MLflow refuses params a: ")
    assert gone == f"Artifact gone was left out: {spool.folder.parent.parent / 'gone'} does not exist any more"
    spool.remove()


def test_deleted_run_is_not_taken_for_a_refusal(client: Any, run_id: str, spool: Spool) -> None:
    client.delete_run(run_id)
    for operation in operations.metrics({"m": 1.0}, 0):
        spool.append(operation)
    with pytest.raises(Exception, match="'active' state"):
        Delivery(client, run_id, spool).step()
    assert spool.unsent() == 1, "nothing is lost: the run may be restored"
    spool.remove()


@pytest.mark.parametrize(
    ("source", "kind"),
    [("data/x.jsonl", "local"), ("https://host/x", "http"), ("hub:openai/gsm8k/main/train", "hugging_face")],
)
def test_source_of_a_dataset(client: Any, run_id: str, spool: Spool, source: str, kind: str) -> None:
    spool.append(operations.dataset("d", "0" * 64, source, 3, "training"))
    Delivery(client, run_id, spool).step()
    [used] = client.get_run(run_id).inputs.dataset_inputs
    assert (used.dataset.source_type, used.dataset.digest) == (kind, "0" * 36)
    assert source.removeprefix("hub:") in used.dataset.source
    spool.remove()


@pytest.mark.parametrize(
    "error", [NotImplementedError("log_spans"), MlflowException("no such path", error_code=ENDPOINT_NOT_FOUND)]
)
def test_a_store_without_traces_gets_all_the_rest(
    client: Any, run_id: str, spool: Spool, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from lorahydra.tracking import delivery

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(delivery, "send_trace", refuse)
    for _ in range(2):
        spool.append(operations.trace("judge", {}, {}, {}, **CALL))
    for operation in operations.metrics({"m": 1.0}, 1):
        spool.append(operation)
    sender = Delivery(client, run_id, spool)
    while sender.step():
        pass
    assert client.get_metric_history(run_id, "m")
    assert caplog.text.count("too old for these traces") == 1
