"""The study's own run, from one process to the next."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution

from lorahydra.config.compose import compose
from lorahydra.errors import JudgeError, StudyError
from lorahydra.names import State
from lorahydra.sweep.study_run import StudyRun
from lorahydra.sweep.study_store import STUDY_ID
from lorahydra.sweep.trial_queue import TrialQueue


@pytest.fixture
def queue() -> TrialQueue:
    optuna.logging.disable_default_handler()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.set_user_attr(STUDY_ID, "an id")
    return TrialQueue(study, 3)


def opened(queue: TrialQueue, folder: Path) -> StudyRun:
    config = compose(["data.train_file=demo", f"tracking.uri=sqlite:///{folder}/mlflow.db"])
    run = StudyRun(config, queue, folder / "study")
    run.open()
    return run


def stored(run: StudyRun) -> tuple[str, str, int]:
    from mlflow import MlflowClient

    recorded = MlflowClient(run.config.tracking.uri).get_run(run.run_id)
    return recorded.info.status, recorded.data.tags["lorahydra.state"], recorded.info.end_time or 0


def test_one_that_had_ended_stays_as_it_was_when_it_cannot_go_on(queue: TrialQueue, place: Path) -> None:
    first = opened(queue, place)
    first.close(State.COMPLETE)
    assert stored(first)[:2] == ("FINISHED", "complete")
    assert stored(first)[2] > 0

    refused = opened(queue, place)
    assert refused.run_id == first.run_id
    assert stored(refused) == ("RUNNING", "running", 0), "a run that goes on has no end"
    refused.give_up(StudyError("other data"))
    assert stored(refused)[:2] == ("FINISHED", "complete")

    longer = opened(queue, place)
    queue.claim(1, lambda trial: [str(trial._suggest("x", IntDistribution(1, 9)))])
    longer.give_up(JudgeError("away"))
    assert stored(longer)[:2] == ("FAILED", "failed")
