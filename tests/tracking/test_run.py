from __future__ import annotations

import _thread
import errno
import json
import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import SECONDS

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, OutputError, TrackingError
from lorahydra.names import FINAL_PREDICTIONS_FILE, PREDICTIONS_FILE, Kind, State
from lorahydra.tracking import TrackedRun, add_to_run, operations, reopen_run, start_run, sync
from lorahydra.tracking.spool import Header, Spool

StartRun = Callable[..., TrackedRun]


def artifacts(client: Any, run_id: str, path: str | None = None) -> dict[str, bytes]:
    """All artifacts of a run below `path`, read from the folder where the SQLite store keeps them."""
    root = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / (path or "")
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_what_was_logged_is_in_the_store(start: StartRun, client: Any, tmp_path: Path) -> None:
    with start() as run:
        run.params({"lora.r": 16, "lora.use_dora": False, "data.test_file": None})
        for step in range(3):
            run.metrics({"train/loss": 3.0 - step, "train/learning_rate": 1e-4}, step=step)
        run.metrics({"eval/combined": 0.8004})
        run.tags({"lorahydra.study": "s1"})
        run.text("seed: 42\n", "config/config.yaml")
        run.dataset("demo/train", "0123456789abcdef" * 4, "demo.jsonl", 12, "training")
        assert run.finish(State.COMPLETE) == 0

    stored = client.get_run(run.run_id)
    assert stored.data.params == {"lora.r": "16", "lora.use_dora": "False", "data.test_file": "None"}
    history = client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert stored.data.metrics == {"train/loss": 1.0, "train/learning_rate": 1e-4, "eval/combined": 0.8004}
    assert artifacts(client, run.run_id) == {"config/config.yaml": b"seed: 42\n"}
    [used] = stored.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("demo/train", ("0123456789abcdef" * 4)[:36])
    assert json.loads(used.dataset.profile) == {"num_rows": 12}
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    assert stored.info.run_name == "demo"
    assert stored.info.status == "FINISHED"
    assert stored.info.start_time <= history[0].timestamp <= stored.info.end_time
    assert stored.data.tags["lorahydra.kind"] == "single"
    assert stored.data.tags["lorahydra.state"] == "complete"
    assert stored.data.tags["lorahydra.study"] == "s1"
    assert stored.data.tags["mlflow.source.type"] == "LOCAL"
    assert not (tmp_path / "out" / "tracking").exists(), "everything was sent, so the spool is gone"


def test_table_is_one_that_mlflow_reads(
    start: StartRun, client: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["a\nb", 0.5, None], ["ж \ud83d", math.nan, "x"]]
    with start() as run:
        run.table(["prompt", "score", "reason"], rows, PREDICTIONS_FILE)
    stored = json.loads(artifacts(client, run.run_id)[PREDICTIONS_FILE])
    assert stored == {
        "columns": ["prompt", "score", "reason"],
        "data": [["a\nb", 0.5, None], ["ж \ud83d", None, "x"]],
    }
    tags = client.get_run(run.run_id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": PREDICTIONS_FILE, "type": "table"}]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # `load_table` searches there, not in the client's store
    frame = client.load_table(run.experiment_id, PREDICTIONS_FILE, run_ids=[run.run_id])
    assert frame["prompt"][0] == "a\nb"
    assert frame["score"][0] == 0.5


def test_exception_marks_the_run_failed(start: StartRun, client: Any) -> None:
    with pytest.raises(ValueError, match="first"), start() as run:
        raise ValueError("first\nsecond")
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["lorahydra.state"] == "failed"
    assert stored.data.tags["lorahydra.failure"] == "ValueError: first second"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupt_marks_the_run_interrupted(start: StartRun, client: Any, error: type[BaseException]) -> None:
    with pytest.raises(error), start() as run:
        raise error
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["lorahydra.state"]) == ("KILLED", "interrupted")


def test_leaving_the_block_completes_the_run(start: StartRun, client: Any) -> None:
    with start() as run:
        pass
    assert client.get_run(run.run_id).data.tags["lorahydra.state"] == "complete"


def test_a_pruned_run_does_not_look_like_a_complete_one(start: StartRun, client: Any) -> None:
    with start() as run:
        run.finish(State.PRUNED)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.tags["lorahydra.state"]) == ("KILLED", "pruned")


def test_what_is_added_later_leaves_the_rest_as_it_was(start: StartRun, uri: str, client: Any, tmp_path: Path) -> None:
    with start() as run:
        run.table(["a"], [["1"]], PREDICTIONS_FILE)
        run.finish(State.FAILED, "OSError: disk")
    before = client.get_run(run.run_id)
    config = TrackingConfig(uri=uri)
    with pytest.raises(ValueError, match="here"), add_to_run(config, output_dir=tmp_path, run_id=run.run_id) as more:
        assert more.before.state is State.FAILED
        more.table(["a"], [["2"]], FINAL_PREDICTIONS_FILE)
        more.metrics({"final/combined": 0.5})
        raise ValueError("here")
    after = client.get_run(run.run_id)
    assert (after.info.status, after.info.end_time) == (before.info.status, before.info.end_time)
    assert after.data.metrics == {"final/combined": 0.5}
    tables = json.loads(after.data.tags.pop("mlflow.loggedArtifacts"))
    assert [table["path"] for table in tables] == [PREDICTIONS_FILE, FINAL_PREDICTIONS_FILE]
    assert after.data.tags.items() <= before.data.tags.items()


DAY = 86_400_000


def test_the_time_between_two_attempts_is_not_a_part_of_the_duration(
    start: StartRun, uri: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as run:
        run.finish(State.INTERRUPTED)
    monkeypatch.setattr(operations, "now", lambda now=operations.now: now() + DAY)
    config = TrackingConfig(uri=uri, system_metrics=False)
    with reopen_run(config, output_dir=tmp_path / "out", run_id=run.run_id):
        assert client.get_run(run.run_id).info.status == "RUNNING"
    info = client.get_run(run.run_id).info
    assert info.status == "FINISHED"
    assert 0 <= info.end_time - info.start_time < DAY / 2


def test_nor_if_the_second_attempt_dies(start: StartRun, uri: str, client: Any, tmp_path: Path) -> None:
    with start() as run:
        run.leave()
    spool = Spool.create(tmp_path / "out")
    spool.write_header(Header(uri, run.run_id, "demo", operations.now() + DAY, pause=DAY))
    for operation in operations.tags({"a": "b"}):
        spool.append(operation | {"time": operations.now() + DAY})
    spool.close()
    [sent] = sync(tmp_path).runs
    info = client.get_run(run.run_id).info
    assert sent.interrupted
    assert 0 <= info.end_time - info.start_time < DAY / 2


def test_tags_and_parent(uri: str, client: Any, tmp_path: Path) -> None:
    config = TrackingConfig(uri=uri, system_metrics=False, experiment_name="a/b: c")
    tags = {"lorahydra.trial_number": "0"}
    config.tags = {"team": "support", "lorahydra.kind": "mine"}
    folder = tmp_path / "0"
    with (
        start_run(config, output_dir=tmp_path, kind=Kind.STUDY, run_name="s") as parent,
        start_run(
            config,
            output_dir=folder,
            kind=Kind.TRIAL,
            run_name="t",
            tags=tags,
            parent_run_id=parent.run_id,
        ) as child,
    ):
        assert client.get_run(child.run_id).data.tags["lorahydra.state"] == "running"
        child.text("x", "x.txt")
    stored = client.get_run(child.run_id)
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.data.tags["lorahydra.trial_number"] == "0"
    assert (stored.data.tags["team"], stored.data.tags["lorahydra.kind"]) == ("support", "trial")
    assert client.get_experiment(child.experiment_id).name == "a/b: c"
    assert artifacts(client, child.run_id) == {"x.txt": b"x"}


def test_no_param_is_an_error(start: StartRun, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    many = {f"p{number}": "я" * 6000 for number in range(130)}
    odd = {"k" * 300: "v" * 10_000, "a b!?/..\n": "odd", "": "empty", "../x": "up"}
    with start() as run:
        run.params(many)
        run.params(odd)
        run.params({"p0": "я" * 6000})
        run.params({"p1": "other", "new": 1})
        assert run.finish(State.COMPLETE) == 0
    params = client.get_run(run.run_id).data.params
    assert len(params) == 130 + 4 + 1
    assert params["p1"] == "я" * 6000
    assert params["new"] == "1"
    [long] = [name for name in params if name.startswith("kkk")]
    assert len(long) == 250
    assert params[long] == "v" * 5999 + "…"
    assert [record.getMessage()[:55] for record in caplog.records] == [
        "MLflow keeps the first value of param p1 and leaves oth"
    ]


def test_metrics_that_are_not_finite(start: StartRun, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with start() as run:
        run.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf, "text": "x"})  # type: ignore[dict-item]
    metrics = client.get_run(run.run_id).data.metrics
    assert math.isnan(metrics.pop("nan"))
    assert metrics == {"up": 1.7976931348623157e308, "down": -1.7976931348623157e308}
    assert "Metric text is not a number" in caplog.text


def test_more_points_than_fit_one_call(start: StartRun, client: Any) -> None:
    with start() as run:
        for step in range(2500):
            run.metrics({"train/loss": step / 7}, step=step)
    points = client.get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(step, step / 7) for step in range(2500)]


def test_artifacts_are_what_they_were_when_logged(start: StartRun, client: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "out" / "adapter"
    (adapter / "deep").mkdir(parents=True)
    (adapter / "deep" / "weights").write_bytes(b"w")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("first")
    with start() as run:
        run.artifact(adapter, "adapter")
        run.artifact(elsewhere, "copied")
        run.artifact(elsewhere / "file", "data/report.json")
        run.artifact(tmp_path / "missing", "missing")
        (elsewhere / "file").write_text("second")
    assert artifacts(client, run.run_id) == {
        "adapter/deep/weights": b"w",
        "copied/file": b"first",
        "data/report.json": b"first",
    }


def test_global_state_of_mlflow_is_left_alone(start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    before = mlflow.get_tracking_uri()
    with start() as run:
        assert mlflow.active_run() is None
        run.metrics({"a": 1.0})
    assert run.run_id != "0" * 32
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_nothing_is_printed(start: StartRun, capfd: pytest.CaptureFixture[str]) -> None:
    with start() as run:
        run.metrics({"a": 1.0})
    assert capfd.readouterr() == ("", "")


def test_short_run_has_a_sample_of_the_system(start: StartRun, client: Any) -> None:
    with start(system_metrics=True) as run:
        run._sample({"system/early": 1.0}, 0)
        run.metrics({"train/loss": 1.0})
    metrics = client.get_run(run.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= set(metrics)
    assert list(metrics)[:2] == ["train/loss", "system/early"], "MLflow begins comparisons with the first metric"


def test_full_disk_is_told_once_and_recorded(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def full(handle: int, data: Any) -> int:
        if b'"op"' in bytes(data):
            write(handle, bytes(data)[:5])  # a full disk often takes a part
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    def trial() -> None:
        with run:
            run.metrics({"a": 1.0})
            monkeypatch.setattr(os, "write", full)
            try:
                run.metrics({"b": 1.0})
            finally:
                run.metrics({"c": 1.0})

    run = start()
    with pytest.raises(OutputError, match="the disk is full"):
        trial()
    stored = client.get_run(run.run_id)
    assert stored.data.metrics == {"a": 1.0}
    assert stored.data.tags["lorahydra.state"] == "failed"
    assert stored.data.tags["lorahydra.failure"].startswith("OutputError: cannot write to")
    assert "2 entries of run" in caplog.text


def test_calls_after_the_end_do_nothing(start: StartRun, client: Any, tmp_path: Path) -> None:
    run = start()
    run.finish(State.COMPLETE)
    run.metrics({"late": 1.0})
    run.text("late", "late.txt")
    assert run.finish(State.FAILED) == 0
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {})
    assert not (tmp_path / "out" / "tracking").exists()


def test_training_thread_never_waits_for_the_store(
    start: StartRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store hangs in every call; logging goes on, and only the end finds out."""
    from mlflow import MlflowClient

    asked, released = threading.Event(), threading.Event()

    def hang(*args: Any, **kwargs: Any) -> None:
        asked.set()
        released.wait(SECONDS)
        raise ConnectionError("the store went away")

    caplog.set_level(logging.INFO)
    with start(retry_seconds=0.0) as run:
        monkeypatch.setattr(MlflowClient, "log_batch", hang)
        run.metrics({"a": 1.0}, step=0)
        assert asked.wait(SECONDS)
        for step in range(1, 100):
            run.metrics({"a": 1.0}, step=step)
        released.set()
        unsent = run.finish(State.COMPLETE)
    assert unsent == 102, "100 points, the state and the end"
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "(the store went away); run `lorahydra sync " in caplog.messages[-1]


def test_interrupt_while_the_end_waits_keeps_everything(
    start: StartRun, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C during the wait for a store that cannot be reached: the run still ends as it did."""
    from mlflow import MlflowClient

    pressed = threading.Event()

    def away(*args: Any, **kwargs: Any) -> None:
        if run._sender._draining and not pressed.is_set():
            pressed.set()
            _thread.interrupt_main()
        raise ConnectionError("away")

    run = start(retry_seconds=60.0)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        run.metrics({"a": 1.0})
        with pytest.raises(KeyboardInterrupt):
            run.finish(State.COMPLETE)
    [sent] = sync(tmp_path / "out").runs
    assert (sent.run_id, sent.interrupted) == (run.run_id, False)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"a": 1.0})


def test_a_run_that_mlflow_opened_becomes_ours(start: StartRun, client: Any, tmp_path: Path) -> None:
    theirs = client.create_experiment("theirs", artifact_location=(tmp_path / "files").as_uri())
    opened = client.create_run(theirs, tags={"mlflow.source.type": "PROJECT"}, run_name="bold-bee-1").info.run_id
    client.log_param(opened, "n_trials", "3")
    with start(run_id=opened, experiment_name="ignored") as run:
        assert run.run_id == opened
        run.params({"n_trials": 3, "seed": 1})
        child = start_run(
            TrackingConfig(uri=client.tracking_uri, system_metrics=False, run_id=opened),
            output_dir=tmp_path / "child",
            kind=Kind.TRIAL,
            run_name="0",
            parent_run_id=opened,
        )
        child.finish(State.COMPLETE)
    recorded = client.get_run(opened)
    assert recorded.info.run_name == "demo"
    assert (recorded.data.tags["mlflow.source.type"], recorded.data.tags["lorahydra.kind"]) == ("PROJECT", "single")
    assert recorded.data.params == {"n_trials": "3", "seed": "1"}
    assert recorded.info.status == "FINISHED"
    assert client.get_run(child.run_id).info.experiment_id == theirs
    assert client.get_experiment_by_name("ignored") is None


def test_a_run_id_that_is_not_there_is_one_line(start: StartRun) -> None:
    with pytest.raises(TrackingError, match="has no run 0{32}"):
        start(run_id="0" * 32)
    with pytest.raises(ConfigError, match=r"tracking.run_id=12 is not the id of an MLflow run"):
        start(run_id="12")
