from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.programs import ProgramRunner

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import TrackingError
from lorahydra.names import Kind, State
from lorahydra.tracking import (
    TrackedRun,
    children,
    close_run,
    find_run,
    find_unsent,
    join_run,
    start_run,
    sync,
    unfinished_children,
)
from lorahydra.tracking.children import ChildRun

StartRun = Callable[..., TrackedRun]


@pytest.fixture
def config(uri: str) -> TrackingConfig:
    return TrackingConfig(uri=uri, system_metrics=False, retry_seconds=0.0)


def away(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("away")


def end_of(client: Any, run_id: str) -> tuple[str, str, str | None]:
    """Status, state and failure of a run in the store."""
    run = client.get_run(run_id)
    return run.info.status, run.data.tags["lorahydra.state"], run.data.tags.get("lorahydra.failure")


def test_two_handles_record_the_same_run(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    first = start()
    with join_run(config, output_dir=tmp_path / "second", run_id=first.run_id) as second:
        first.metrics({"first": 1.0}, step=0)
        second.metrics({"second": 2.0}, step=0)
        second.text("x", "x.txt")
        assert second.leave() == 0
    assert end_of(client, first.run_id) == ("RUNNING", "running", None), "leaving ends nothing"
    assert client.get_run(first.run_id).data.metrics["second"] == 2.0
    assert not (tmp_path / "second" / "tracking").exists()
    first.metrics({"late": 3.0})
    assert first.finish(State.COMPLETE) == 0
    assert client.get_run(first.run_id).data.metrics == {"first": 1.0, "second": 2.0, "late": 3.0}
    assert end_of(client, first.run_id) == ("FINISHED", "complete", None)


def test_calls_after_leaving_do_nothing(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    parent = start()

    def work() -> None:
        with join_run(config, output_dir=tmp_path / "second", run_id=parent.run_id) as joined:
            joined.leave()
            joined.metrics({"late": 1.0})
            joined.text("late", "late.txt")
            assert joined.leave() == 0
            assert joined.finish(State.FAILED) == 0
            raise ValueError("after the end")

    with pytest.raises(ValueError, match="after the end"):
        work()
    assert not (tmp_path / "second" / "tracking").exists()
    assert end_of(client, parent.run_id) == ("RUNNING", "running", None)
    assert client.get_run(parent.run_id).data.metrics == {}
    parent.finish(State.COMPLETE)


def test_joining_opens_a_run_that_failed(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    run = start()
    run.params({"a": 1})
    run.metrics({"m": 1.0})
    run.finish(State.FAILED, "OSError: disk")
    handles = [join_run(config, output_dir=tmp_path / name, run_id=run.run_id) for name in "ab"]
    assert end_of(client, run.run_id) == ("RUNNING", "running", None)
    assert [handle.before.state for handle in handles] == [State.FAILED, State.INTERRUPTED]
    assert handles[0].before.metrics == {"m": 1.0}
    handles[1].leave()
    handles[0].finish(State.COMPLETE)
    assert end_of(client, run.run_id) == ("FINISHED", "complete", None)


def test_failure_that_another_process_forgot_first(
    start: StartRun, config: TrackingConfig, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    with start() as run:
        run.finish(State.FAILED, "OSError: disk")
    delete = MlflowClient.delete_tag

    def twice(self: Any, run_id: str, key: str) -> None:
        delete(self, run_id, key)
        delete(self, run_id, key)

    monkeypatch.setattr(MlflowClient, "delete_tag", twice)
    join_run(config, output_dir=tmp_path, run_id=run.run_id).leave()
    assert end_of(client, run.run_id) == ("RUNNING", "running", None)


def test_params_of_a_run_that_goes_on_stay(
    start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start() as run:
        run.params({"a": 1, "b": 2})
    with join_run(config, output_dir=tmp_path, run_id=run.run_id) as joined:
        joined.params({"a": 1, "b": 3, "c": 4})
    assert client.get_run(run.run_id).data.params == {"a": "1", "b": "2", "c": "4"}
    assert caplog.messages == ["MLflow keeps the first value of param b and leaves 3 out"]


def test_joined_run_has_no_samples_of_the_system(start: StartRun, uri: str, client: Any, tmp_path: Path) -> None:
    parent = start()
    join_run(TrackingConfig(uri=uri), output_dir=tmp_path, run_id=parent.run_id).leave()
    parent.finish(State.COMPLETE)
    assert client.get_run(parent.run_id).data.metrics == {}


def test_run_that_cannot_be_joined(config: TrackingConfig, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="has no run"):
        join_run(config, output_dir=tmp_path / "out", run_id="0" * 32)
    assert not (tmp_path / "out").exists()


JOIN = """
import sys
from pathlib import Path
from lorahydra.config.schema import TrackingConfig
from lorahydra.tracking import join_run

uri, run_id, folder = sys.argv[1:]
with join_run(TrackingConfig(uri=uri), output_dir=Path(folder), run_id=run_id) as run:
    for step in range(100):
        run.metrics({Path(folder).name: step / 7}, step=step)
    run.leave()
"""


@pytest.mark.slow
def test_two_processes_record_the_same_run(
    start: StartRun, uri: str, client: Any, tmp_path: Path, programs: ProgramRunner
) -> None:
    parent = start()
    commands = [["-c", JOIN, uri, parent.run_id, str(tmp_path / name)] for name in ("a", "b")]
    ends = [process.finish() for process in [programs.start(command, tmp_path) for command in commands]]
    assert [(done.returncode, done.stdout, done.stderr) for done in ends] == [(0, "", "")] * 2
    for name in ("a", "b"):
        points = client.get_metric_history(parent.run_id, name)
        assert [(point.step, point.value) for point in points] == [(step, step / 7) for step in range(100)]
        assert not (tmp_path / name / "tracking").exists()
    assert end_of(client, parent.run_id) == ("RUNNING", "running", None)
    parent.finish(State.COMPLETE)


def test_what_was_left_behind_is_sent_and_the_run_stays_open(
    start: StartRun, config: TrackingConfig, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    parent = start()
    joined = join_run(config, output_dir=tmp_path / "second", run_id=parent.run_id)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        joined.metrics({"m": 1.0}, step=5)
        unsent = joined.leave()
    assert unsent == 2, "the point and the leave"
    assert len(find_unsent(tmp_path / "second")) == 1
    [sent] = sync(tmp_path / "second").runs
    assert (sent.run_id, sent.interrupted) == (parent.run_id, False)
    assert end_of(client, parent.run_id) == ("RUNNING", "running", None)
    assert client.get_run(parent.run_id).data.metrics == {"m": 1.0}
    assert find_unsent(tmp_path / "second") == []
    parent.finish(State.COMPLETE)


def die(run: TrackedRun) -> None:
    """What a kill leaves: a spool that no one holds and whose last operation does not end the run."""
    run._sender._stop()
    run._spool.close()


def test_dead_process_of_a_run_that_another_one_finished(
    start: StartRun, config: TrackingConfig, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    parent = start()
    joined = join_run(config, output_dir=tmp_path / "second", run_id=parent.run_id)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        joined.metrics({"m": 1.0})
        die(joined)
    parent.finish(State.COMPLETE)
    ended = client.get_run(parent.run_id).info.end_time
    [sent] = sync(tmp_path).runs
    assert (sent.run_id, sent.entries, sent.interrupted) == (parent.run_id, 1, False)
    assert end_of(client, parent.run_id) == ("FINISHED", "complete", None)
    assert client.get_run(parent.run_id).info.end_time == ended
    assert client.get_run(parent.run_id).data.metrics == {"m": 1.0}


def test_dead_process_of_a_run_that_another_one_goes_on_with(
    start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path
) -> None:
    parent = start()
    die(join_run(config, output_dir=tmp_path / "second", run_id=parent.run_id))
    result = sync(tmp_path)
    assert [sent.interrupted for sent in result.runs] == [False]
    assert result.busy == [tmp_path / "out"]
    assert end_of(client, parent.run_id) == ("RUNNING", "running", None)
    die(parent)
    assert [sent.interrupted for sent in sync(tmp_path).runs] == [True]
    assert end_of(client, parent.run_id) == ("KILLED", "interrupted", None)


def test_all_processes_of_a_run_died(start: StartRun, config: TrackingConfig, client: Any, tmp_path: Path) -> None:
    parent = start()
    for run in (parent, join_run(config, output_dir=tmp_path / "second", run_id=parent.run_id)):
        die(run)
    assert sorted(sent.interrupted for sent in sync(tmp_path).runs) == [False, True], "closed once"
    assert end_of(client, parent.run_id) == ("KILLED", "interrupted", None)


ODD = ["plain", "it's", 'say "x"', """both ' and " at once'""", "back\\slash\\", "100%_sure", "a;b--c", "", " ж\n"]


@pytest.mark.parametrize("value", ODD)
def test_run_is_found_by_its_tags(start: StartRun, config: TrackingConfig, client: Any, value: str) -> None:
    with start() as run:
        run.tags({"lorahydra.study": value, "odd name: x": "1"})
    assert find_run(config, {"lorahydra.study": value}) == run.run_id
    assert find_run(config, {"lorahydra.study": value, "odd name: x": "1"}) == run.run_id
    assert find_run(config, {"lorahydra.study": value, "odd name: x": "2"}) is None
    assert find_run(config, {"lorahydra.study": f"{value}?"}) is None
    client.delete_run(run.run_id)
    assert find_run(config, {"lorahydra.study": value}) is None


def test_other_values_of_the_same_pattern_are_not_found(
    start: StartRun, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "PAGE", 2)
    for value in ("it`s", "it?s", "IT'S", "it's", "it's"):
        with start() as run:
            run.tags({"lorahydra.study": value})
    run_id = find_run(config, {"lorahydra.study": "it's"})
    assert run_id is not None
    assert run_id != run.run_id, "the oldest"
    assert find_run(config, {"lorahydra.study": "it;s"}) is None


def test_nothing_is_found_where_nothing_is(config: TrackingConfig, tmp_path: Path) -> None:
    assert find_run(config, {"lorahydra.study": "s"}) is None, "no such experiment"
    elsewhere = TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db")
    assert find_run(elsewhere, {"lorahydra.study": "s"}) is None, "no such file"
    assert not (tmp_path / "new").exists()


def nested(config: TrackingConfig, parent: TrackedRun, folder: Path, number: int) -> TrackedRun:
    return start_run(
        config,
        output_dir=folder / str(number),
        kind=Kind.TRIAL,
        run_name=f"trial {number}",
        tags={"lorahydra.trial_number": str(number)},
        parent_run_id=parent.run_id,
    )


def test_children_that_did_not_end(
    start: StartRun, config: TrackingConfig, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(children, "PAGE", 2)
    with start() as parent, start() as other:
        runs = [nested(config, parent, tmp_path, number) for number in range(7)]
        stranger = nested(config, other, tmp_path, 7)
        runs[2].finish(State.COMPLETE)
        runs[4].finish(State.PRUNED)
        client.update_run(runs[0].run_id, status="SCHEDULED")
        client.set_tag(runs[6].run_id, "lorahydra.trial_number", "six")
        expected = [(0, "trial 0"), (1, "trial 1"), (3, "trial 3"), (5, "trial 5"), (None, "trial 6")]
        unfinished = unfinished_children(config, parent.run_id)
        assert sorted(unfinished, key=lambda child: child.name) == [
            ChildRun(runs[int(name[-1])].run_id, number, name) for number, name in expected
        ]
        for run in (*runs, stranger):
            run.finish(State.COMPLETE)
        assert unfinished_children(config, parent.run_id) == []
        with pytest.raises(TrackingError, match="has no run"):
            unfinished_children(config, "0" * 32)


@pytest.mark.parametrize(
    ("state", "failure", "status"),
    [
        (State.COMPLETE, None, "FINISHED"),
        (State.PRUNED, None, "KILLED"),
        (State.FAILED, "OSError: first\nsecond", "FAILED"),
        (State.INTERRUPTED, None, "KILLED"),
    ],
)
def test_run_without_a_process_is_closed(
    start: StartRun, config: TrackingConfig, client: Any, state: State, failure: str | None, status: str
) -> None:
    run = start()
    die(run)
    close_run(config, run.run_id, state, failure)
    told = "OSError: first second" if failure else None
    assert end_of(client, run.run_id) == (status, state, told)
    before = client.get_run(run.run_id).to_dictionary()
    assert before["info"]["end_time"] >= before["info"]["start_time"]
    close_run(config, run.run_id, state, "another")
    assert client.get_run(run.run_id).to_dictionary() == before


def test_closing_otherwise_keeps_the_time_of_the_end(start: StartRun, config: TrackingConfig, client: Any) -> None:
    with start() as run:
        pass
    client.set_terminated(run.run_id, "KILLED", 2_000_000_000_000)
    close_run(config, run.run_id, State.FAILED, "x")
    assert end_of(client, run.run_id) == ("FAILED", "failed", "x")
    assert client.get_run(run.run_id).info.end_time == 2_000_000_000_000


def test_store_that_is_away(start: StartRun, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    with start() as run:
        pass
    for name in ("set_tag", "search_runs"):
        monkeypatch.setattr(MlflowClient, name, away)
    with pytest.raises(TrackingError, match="away"):
        close_run(config, run.run_id, State.FAILED)
    with pytest.raises(TrackingError, match="away"):
        find_run(config, {"a": "b"})
    with pytest.raises(TrackingError, match="away"):
        unfinished_children(config, run.run_id)
