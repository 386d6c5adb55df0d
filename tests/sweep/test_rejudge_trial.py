"""A trial whose answers are judged again takes its place in the study."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import Trial, TrialState

from lorahydra.errors import StudyError
from lorahydra.names import State
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.trial_queue import TrialQueue


def configure(trial: Trial) -> list[str]:
    trial._suggest("lora.r", IntDistribution(1, 64))
    return []


def begun(queue: TrialQueue) -> RunningTrial:
    """A trial that has a run of its own."""
    [running], _ = queue.claim(1, configure)
    running.note(run_id=f"run-{running.number}", folder=f"/there/{running.number}")
    return running


@pytest.fixture
def queue() -> TrialQueue:
    optuna.logging.disable_default_handler()
    return TrialQueue(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), 4)


def states(queue: TrialQueue) -> list[State]:
    return [record.state for record in queue.records()]


def test_one_that_failed_counts_as_another_one(queue: TrialQueue) -> None:
    failed = begun(queue)
    failed.failed("JudgeCoverageError: too few")
    again = queue.take_again("run-0")
    assert again is not None
    assert again.params == failed.params
    assert [facts["folder"] for facts in again.earlier()] == ["/there/0"]
    assert states(queue) == [State.INTERRUPTED, State.RUNNING]
    again.note(run_id="run-0", folder="/there/0")
    again.complete([0.5])
    assert [(r.state, r.run_id, r.params) for r in queue.records()] == [
        (State.INTERRUPTED, None, failed.params),
        (State.COMPLETE, "run-0", failed.params),
    ]
    assert queue.finished() == 1
    assert queue.take_again("run-0") is None


def test_one_that_was_interrupted_is_the_one_that_waits(queue: TrialQueue) -> None:
    running = begun(queue)
    queue.interrupt_mine()
    [waiting] = queue.study.get_trials(states=(TrialState.WAITING,))
    again = queue.take_again("run-0")
    assert again is not None
    assert (again.number, again.params) == (waiting.number, running.params)
    queue.interrupt_mine()
    [queued] = queue.study.get_trials(states=(TrialState.WAITING,))
    assert queued.system_attrs["fixed_params"] == running.params
    assert states(queue) == [State.INTERRUPTED, State.INTERRUPTED]


def test_what_is_going_on_or_was_run_again_is_left_alone(queue: TrialQueue) -> None:
    begun(queue)
    with pytest.raises(StudyError, match="trial 0 of study .* is still running"):
        queue.take_again("run-0")
    queue.interrupt_mine()
    second = begun(queue)
    with pytest.raises(StudyError, match="trial 1 of study .* is still running"):
        queue.take_again("run-0")
    second.complete([0.5])
    with pytest.raises(StudyError, match="of trial 0 of study .* were run again as trial 1, which counts"):
        queue.take_again("run-0")
    with pytest.raises(StudyError, match="has no trial whose MLflow run is elsewhere"):
        queue.take_again("elsewhere")
