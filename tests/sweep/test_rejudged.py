"""A trial whose answers are judged again takes its place in the study."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import Trial, TrialState

from lorahydra.errors import StudyError
from lorahydra.names import State
from lorahydra.sweep.ledger import Ledger
from lorahydra.sweep.running import RunningTrial


def configure(trials: list[Trial]) -> Any:
    for trial in trials:
        trial._suggest("lora.r", IntDistribution(1, 64))
    return [() for _ in trials]


def begun(ledger: Ledger) -> RunningTrial:
    """A trial that has a run of its own."""
    [running], _ = ledger.claim(1, configure)
    running.note(run_id=f"run-{running.number}", folder=f"/there/{running.number}")
    return running


@pytest.fixture
def ledger() -> Ledger:
    optuna.logging.disable_default_handler()
    return Ledger(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), 4)


def states(ledger: Ledger) -> list[State]:
    return [record.state for record in ledger.records()]


def test_one_that_failed_counts_as_another_one(ledger: Ledger) -> None:
    failed = begun(ledger)
    failed.failed("JudgeCoverageError: too few")
    again = ledger.take_again("run-0")
    assert again is not None
    assert again.params == failed.params
    assert [facts["folder"] for facts in again.earlier()] == ["/there/0"]
    assert states(ledger) == [State.INTERRUPTED, State.RUNNING]
    again.note(run_id="run-0", folder="/there/0")
    again.complete([0.5])
    assert [(r.state, r.run_id, r.params) for r in ledger.records()] == [
        (State.INTERRUPTED, None, failed.params),
        (State.COMPLETE, "run-0", failed.params),
    ]
    assert ledger.finished() == 1
    assert ledger.take_again("run-0") is None


def test_one_that_was_interrupted_is_the_one_that_waits(ledger: Ledger) -> None:
    running = begun(ledger)
    ledger.interrupt_mine()
    [waiting] = ledger.study.get_trials(states=(TrialState.WAITING,))
    again = ledger.take_again("run-0")
    assert again is not None
    assert (again.number, again.params) == (waiting.number, running.params)
    ledger.interrupt_mine()
    [queued] = ledger.study.get_trials(states=(TrialState.WAITING,))
    assert queued.system_attrs["fixed_params"] == running.params
    assert states(ledger) == [State.INTERRUPTED, State.INTERRUPTED]


def test_what_is_going_on_or_was_run_again_is_left_alone(ledger: Ledger) -> None:
    begun(ledger)
    with pytest.raises(StudyError, match="trial 0 of study .* is going on"):
        ledger.take_again("run-0")
    ledger.interrupt_mine()
    second = begun(ledger)
    with pytest.raises(StudyError, match="trial 1 of study .* is going on"):
        ledger.take_again("run-0")
    second.complete([0.5])
    with pytest.raises(StudyError, match="of trial 0 of study .* were run again as trial 1, which counts"):
        ledger.take_again("run-0")
    with pytest.raises(StudyError, match="has no trial whose MLflow run is elsewhere"):
        ledger.take_again("elsewhere")
