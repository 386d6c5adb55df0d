"""Which trials of other processes live."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
from optuna.trial import Trial

from lorahydra.names import State
from lorahydra.sweep import trial_queue as queue_module
from lorahydra.sweep.cancelling import cancel
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.storage import open_storage
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import ordinals
from lorahydra.utils.processes import this_process

SetAge = Callable[[int], None]


def draw(trial: Trial) -> list[str]:
    trial.suggest_float("x", 0, 1)
    return []


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    # Signs of life come from the tests alone.
    monkeypatch.setattr(RunningTrial, "stay_alive", lambda _: None)
    storage = open_storage(f"sqlite:///{tmp_path}/studies.db")
    return optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=1))


def claim(study: optuna.Study, worker: dict[str, object]) -> RunningTrial:
    """A trial of another process, which gives no sign of life any more."""
    [claimed], _ = TrialQueue(study, 9).claim(1, draw)
    claimed.note(worker=worker)
    return claimed


@pytest.fixture
def set_age(study: optuna.Study) -> SetAge:
    """Sets how many seconds ago the last sign of life was."""

    def set_age(seconds: int) -> None:
        with study._storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]
            connection.execute(sqlalchemy.text("DELETE FROM trial_heartbeats"))
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO trial_heartbeats (trial_id, heartbeat) "
                    f"SELECT trial_id, datetime('now', '-{seconds} seconds') FROM trials"
                )
            )

    return set_age


def elsewhere() -> dict[str, object]:
    return this_process() | {"namespace": 0}


def test_a_process_that_cannot_be_seen_and_is_silent_for_too_long_is_dead(study: optuna.Study, set_age: SetAge) -> None:
    claim(study, elsewhere())
    set_age(91)
    queue = TrialQueue(study, 9)
    assert [record.number for record in queue.close_dead()] == [0]
    assert [record.state for record in queue.records()] == [State.INTERRUPTED]


def test_no_trial_of_a_cancelled_study_is_claimed(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = TrialQueue(study, 9)
    queue.claim(1, draw)
    cancel(study)
    with pytest.raises(KeyboardInterrupt):
        queue.claim(1, draw)
    assert len(study.trials) == 1
    assert len(TrialQueue(study, 9).claim(1, draw)[0]) == 1, "a process that resumes the study"
    monkeypatch.setenv("LORAHYDRA_WORKER", "1")  # it was started before the study was cancelled
    with pytest.raises(KeyboardInterrupt):
        TrialQueue(study, 9).claim(1, draw)
    assert len(study.trials) == 2


def test_silence_is_waited_out(
    study: optuna.Study, set_age: SetAge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim(study, elsewhere())
    set_age(20)
    ages = iter([60, 89, 91])
    monkeypatch.setattr(queue_module, "time", SimpleNamespace(sleep=lambda _: set_age(next(ages))))
    caplog.set_level(logging.INFO)
    assert [record.number for record in TrialQueue(study, 9).wait_for_signs()] == [0]
    [line] = [record.getMessage() for record in caplog.records if "last heard from" in record.getMessage()]
    told = re.fullmatch(
        r"Study s: trial 0 ran in a process that cannot be seen from here, last heard from (\d+) s ago; "
        r"waiting up to (\d+) s to learn whether it is alive",
        line,
    )
    assert told is not None
    ago, wait = map(int, told.groups())
    # On a busy machine a second or more goes by between the two lines above.
    assert (ago >= 20, ago + wait) == (True, 91)


def test_a_new_sign_of_life_ends_the_waiting(
    study: optuna.Study, set_age: SetAge, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(study, elsewhere())
    set_age(20)
    queue = TrialQueue(study, 9)
    monkeypatch.setattr(queue_module, "time", SimpleNamespace(sleep=lambda _: set_age(0)))
    assert queue.wait_for_signs() == []
    assert queue.others() == 1
    monkeypatch.setattr(queue_module, "time", SimpleNamespace(sleep=lambda _: pytest.fail("it is known by now")))
    assert queue.wait_for_signs() == []


def test_the_signal_is_kept_where_it_is_known(study: optuna.Study) -> None:
    for expected in ([signal.SIGKILL], [signal.SIGKILL, signal.SIGSEGV]):
        claim(study, this_process() | {"pid": 2**22 + 1})
        queue = TrialQueue(study, 9)
        assert queue.had_trial(2**22 + 1)
        queue.close_dead({2**22 + 1: expected[-1]})
        assert queue.records()[-1].deaths == expected
    assert queue.records()[-1].failure == "died: its process was killed 2 times (SIGSEGV)"
    assert not queue.had_trial(2**22 + 2)


def test_an_interrupt_after_the_end_of_a_trial_queues_nothing(study: optuna.Study) -> None:
    queue = TrialQueue(study, 9)
    [claimed], _ = queue.claim(1, draw)
    claimed.complete([1.0])
    claimed.state = State.RUNNING  # as if it had come before this was known
    queue.interrupt_mine()
    assert [record.state for record in queue.records()] == [State.COMPLETE]
    assert len(study.get_trials()) == 1


def test_trials_of_a_dead_pack_are_claimed_one_by_one_and_those_of_an_interrupted_one_together(
    study: optuna.Study,
) -> None:
    dead, _ = TrialQueue(study, 9).claim(3, draw)
    for trial in dead:
        trial.note(worker=this_process() | {"pid": 2**22 + 1})
    queue = TrialQueue(study, 9)
    queue.close_dead()
    for trial in dead:
        [again], _ = queue.claim(3, draw)
        assert again.params == trial.params
        again.complete([1.0])
    new, _ = queue.claim(3, draw)
    assert len(new) == 3
    queue.interrupt_mine()
    claimed, _ = TrialQueue(study, 9).claim(9, draw)
    assert [trial.params for trial in claimed] == [trial.params for trial in new]


def test_a_repeated_trial_keeps_its_place(study: optuna.Study) -> None:
    queue = TrialQueue(study, 3)
    first, second = queue.claim(2, draw)[0]
    first.complete([0.5])
    queue.interrupt_mine()
    assert second.state is State.INTERRUPTED
    [again], _ = queue.claim(1, draw)
    with pytest.raises(ZeroDivisionError):  # dies before its parameters are drawn
        queue.claim(1, lambda _: [str(1 / 0)])
    [third], _ = queue.claim(1, draw)
    places = ordinals(queue.records())
    assert [places[trial.number] for trial in (first, second, again, third)] == [1, 2, 2, 3]
    assert again.number > second.number
