"""The storage of studies: it reads and writes what Optuna's own class does, and a claim is one transaction."""

from __future__ import annotations

import math
import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState, create_trial

from lorahydra.errors import StudyStoreError
from lorahydra.sweep.compat import id_of, known_trials
from lorahydra.sweep.storage import open_storage, study_transaction
from lorahydra.sweep.study_database import StudyDatabase
from lorahydra.sweep.trial_queue import TrialQueue

# Heartbeats are sent by `RunningTrial`.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")

RANGES = {
    "rate": FloatDistribution(1e-6, 1, log=True),
    "rank": IntDistribution(1, 64),
    "init": CategoricalDistribution(["a", None, 3]),
}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def study(url: str) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=open_storage(url), sampler=RandomSampler(seed=1))


@pytest.fixture
def storage(study: optuna.Study) -> StudyDatabase:
    backend = study._storage._backend  # type: ignore[attr-defined]
    assert isinstance(backend, StudyDatabase)
    return backend


@pytest.fixture
def plain(study: optuna.Study, url: str) -> Iterator[RDBStorage]:
    """Optuna's own storage of the same database."""
    storage = RDBStorage(url)
    yield storage
    storage.engine.dispose()


def draw(trial: Trial) -> list[str]:
    trial.suggest_float("rate", 0, 1)
    return []


def test_it_reads_what_optuna_reads(study: optuna.Study, storage: StudyDatabase, plain: RDBStorage) -> None:
    given: dict[str, Any] = {"params": {"rate": 1 / 3, "rank": 8, "init": None}, "distributions": RANGES}
    attributes: dict[str, Any] = {"user_attrs": {"lorahydra": {"ф": [1, "x"]}}, "system_attrs": {"fixed_params": {}}}
    losses = {1: 0.1, 2: math.inf, 3: math.nan, 10: -math.inf}
    for state, value in ((TrialState.COMPLETE, 0.5), (TrialState.COMPLETE, math.inf), (TrialState.FAIL, None)):
        study.add_trial(create_trial(state=state, value=value, intermediate_values=losses, **given, **attributes))
    study.enqueue_trial({"rate": 0.25})
    study.add_trial(create_trial(state=TrialState.RUNNING, **given))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={3: 0.25}))
    study_id = plain.get_study_id_from_name("s")
    expected = plain.get_all_trials(study_id)
    assert list(map(repr, storage.get_all_trials(study_id))) == list(map(repr, expected))
    assert [repr(storage.get_trial(id_of(trial))) for trial in expected] == list(map(repr, expected))
    later = {
        "included_trial_ids": {id_of(expected[1]), id_of(expected[5])},
        "trial_id_greater_than": id_of(expected[3]),
    }
    assert [t.number for t in storage._get_trials(study_id, None, **later)] == [1, 4, 5]
    some = {TrialState.FAIL, TrialState.PRUNED}
    assert [t.number for t in storage.get_all_trials(study_id, states=some)] == [2, 5]
    with pytest.raises(KeyError):
        storage.get_trial(10**6)


def test_optuna_reads_what_it_writes(study: optuna.Study, storage: StudyDatabase, plain: RDBStorage) -> None:
    for number in range(2):  # the first value of a parameter is written by Optuna
        trial = study.ask(RANGES)
        for text in ("once", "again"):
            trial.set_user_attr("said", text)
            study.set_user_attr("said", f"{text} {number}")
        assert plain.get_trial(id_of(trial)).params == trial.params
        assert plain.get_trial(id_of(trial)).user_attrs == {"said": "again"}
    assert plain.get_study_user_attrs(study._study_id) == study.user_attrs == {"said": "again 1"}
    assert study._storage.get_study_system_attrs(study._study_id) == {}
    with pytest.raises(ValueError, match="dynamic value space"):
        study.ask({"init": CategoricalDistribution(["b"])})
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        trial.set_user_attr("said", "late")
    for attributes in (storage.get_study_user_attrs, storage.get_study_system_attrs):
        with pytest.raises(KeyError):
            attributes(10**6)
    with pytest.raises(KeyError):
        storage.set_study_user_attr(10**6, "said", "to nobody")


def test_a_waiting_trial_is_begun_once(study: optuna.Study, storage: StudyDatabase, plain: RDBStorage) -> None:
    study.enqueue_trial({"rate": 0.5})
    [waiting] = study.trials
    assert [storage.set_trial_state_values(id_of(waiting), TrialState.RUNNING) for _ in range(2)] == [True, False]
    begun = plain.get_trial(id_of(waiting))
    assert begun.state is TrialState.RUNNING
    assert begun.datetime_start is not None


def test_a_settled_trial_is_read_again_when_it_ends(study: optuna.Study) -> None:
    running, name = study.ask(RANGES), study.study_name
    other = optuna.load_study(study_name=name, storage=study._storage._backend)  # type: ignore[attr-defined]
    other.get_trials()
    for step in ("noted", "ended"):
        running.set_user_attr("fact", step)
        if step == "ended":
            study.tell(running, 1.0)
        with study_transaction(other._storage, name, {id_of(trial) for trial in known_trials(other)}):
            read = [trial.user_attrs for trial in other.get_trials()]
        assert read == ([{"fact": "ended"}] if step == "ended" else [{}])
    assert [trial.user_attrs for trial in other.get_trials()] == [{"fact": "ended"}]


def test_a_process_that_dies_in_its_claim_leaves_nothing(url: str, study: optuna.Study) -> None:
    def die(trial: Trial) -> list[str]:
        draw(trial)
        os._exit(9)

    def claim_and_die() -> None:
        study = optuna.load_study(study_name="s", storage=open_storage(url), sampler=RandomSampler(seed=1))
        TrialQueue(study, 2).claim(2, die)

    study._storage.remove_session()
    worker = multiprocessing.get_context("fork").Process(target=claim_and_die)
    worker.start()
    worker.join()
    assert worker.exitcode == 9
    assert study.get_trials() == []
    [trial], _ = TrialQueue(study, 2).claim(1, draw)
    assert trial.number == 0
    assert trial.params == {"rate": RandomSampler(seed=1)._rng.rng.uniform(0, 1)}


def test_a_transaction_that_is_lost_leaves_nothing_in_the_cache(study: optuna.Study, storage: StudyDatabase) -> None:
    queue = TrialQueue(study, 2)

    def lose(trial: Trial) -> list[str]:
        draw(trial)
        assert [known.number for known in study.trials] == [0]
        storage.scoped_session().get_bind().rollback()  # type: ignore[union-attr]  # the connection of the claim
        raise ConnectionError

    with pytest.raises((ConnectionError, KeyError)):
        queue.claim(1, lose)
    assert study.trials == []
    [trial], _ = queue.claim(1, draw)
    assert trial.number == 0


def test_a_fault_in_drawing_fails_the_trial_and_is_what_is_told(url: str, study: optuna.Study) -> None:
    def begin(choices: list[str]) -> None:
        again = optuna.load_study(study_name="s", storage=open_storage(url))
        TrialQueue(again, 3).claim(1, lambda trial: [trial.suggest_categorical("init", choices)])

    begin(["a"])
    with pytest.raises(ValueError, match="dynamic value space"):
        begin(["a", "b"])
    begin(["a"])
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.FAIL, TrialState.RUNNING]


def test_a_fault_of_one_statement_keeps_the_transaction_and_its_lock(url: str, study: optuna.Study) -> None:
    faults = [sqlite3.OperationalError("disk I/O error")]

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO trial_params") and faults:
            raise faults.pop()

    def draw_twice(trial: Trial) -> list[str]:
        with pytest.raises((sqlite3.OperationalError, StorageInternalError)):
            draw(trial)
        return draw(trial)

    again = optuna.load_study(study_name="s", storage=open_storage(url))
    engine = again._storage._backend.engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "before_cursor_execute", fail)
    lost: list[Any] = []
    sqlalchemy.event.listen(engine, "rollback", lost.append)
    [trial], _ = TrialQueue(again, 1).claim(1, draw_twice)
    assert not lost
    assert [known.params for known in study.trials] == [trial.params]


def test_trials_whose_transaction_was_not_kept_are_nobodys(
    study: optuna.Study, storage: StudyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise storage.engine.dialect.loaded_dbapi.OperationalError("database or disk is full")

    queue = TrialQueue(study, 2)
    with monkeypatch.context() as patch:
        patch.setattr(storage.engine.dialect, "do_commit", fail)
        with pytest.raises(StudyStoreError, match="disk is full"):
            queue.claim(1, draw)
    queue.interrupt_mine()
    assert study.trials == []
