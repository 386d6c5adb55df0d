"""What is told of a study that has ended: its winner, and how sure the choice is."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

import httpx
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial
from sqlalchemy import update
from tests.support.waiting import SECONDS, wait_for

from lorahydra.names import Stage, TuningEffect
from lorahydra.service.database import Job
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState
from lorahydra.sweep.stages import begin_stage, end_stages
from lorahydra.sweep.study_store import RESULT, SPEC, TRIALS
from lorahydra.sweep.trial_record import ATTRIBUTE

CHOICE = {
    "winner": 1,
    "best": 0,
    "reason": "whose adapter is smaller",
    "p_best": {"0": 0.5, "1": 0.45, "2": 0.05},
    "set": [0, 1],
    "regret_bound": 0.0123,
    "examples": 32,
    "final": {
        "1": {"combined": 0.68, "combined_low": 0.6, "combined_high": 0.7, "judge_score": 66.5, "examples": 32},
        "2": {"combined": 0.67, "combined_low": 0.6, "combined_high": 0.7, "judge_score": 64.5, "examples": 32},
    },
}
TEST = {"test/combined": 0.7, "test/combined_low": 0.6, "test/combined_high": 0.8, "baseline/combined": 0.5}
SCORES = (0.7, 0.69, 0.4)


def end_study(service: Service, *, n_trials: int = len(SCORES), **facts: Any) -> int:
    """A fine-tune whose study has ended with these facts, as the server of an earlier version left it; its id."""
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))
    study = optuna.create_study(study_name=job.study, storage=service.stores.studies, direction="maximize")
    for number, score in enumerate(SCORES):
        facts_of = {"combined": score, "bertscore_f1": score, "adapter_bytes": 4_000_000 - number}
        study.add_trial(create_trial(value=score, user_attrs={ATTRIBUTE: facts_of}))
    study.set_user_attr(TRIALS, n_trials)
    study.set_user_attr(SPEC, {"objective": "combined"})
    counts = {"finished": len(SCORES), "complete": len(SCORES)}
    study.set_user_attr(RESULT, {"best": 1, **counts, "test": TEST, **facts})
    with service.jobs._database.changing() as session:
        session.execute(update(Job).where(Job.id == job.id).values(state=JobState.COMPLETE))
    service.close()
    service.open()
    wait_for(service.supervisor.ready.is_set)
    return job.id


def test_the_choice_is_told_also_of_fine_tunes_that_an_earlier_version_ran(
    client: httpx.Client, service: Service
) -> None:
    number = end_study(service, choice=CHOICE)
    job = client.get(f"/fine-tunes/{number}").json()
    choice = job["choice"]
    assert choice.pop("sentence").startswith("Winner: trial 1, whose adapter is smaller. P(best) is 0.45 on 32 ex")
    assert choice == {
        **{"winner": 1, "reason": "smaller_adapter", "best": 0, "winner_bytes": 3_999_999, "best_bytes": 4_000_000},
        **{"p_best": 0.45, "set": [0, 1], "regret_bound": 0.0123, "examples": 32},
    }
    assert (job["best_trial"], job["test_score"]) == (1, 0.7)
    board = client.get(f"/fine-tunes/{number}/leaderboard").json()
    assert [(row["rank"], row["number"], row["final_combined"]) for row in board] == [
        *[(1, 1, 0.68), (2, 2, 0.67), (3, 0, None)]
    ], "the scores that chose the winner decide the order"
    assert (board[0]["final_judge_score"], board[0]["final_examples"]) == (66.5, 32)
    rows = {row["number"]: row for row in board}
    assert [rows[n]["is_winner"] for n in range(3)] == [False, True, False]
    assert [(rows[n]["p_best"], rows[n]["in_set"]) for n in range(3)] == [(0.5, True), (0.45, True), (0.05, False)]


GAINS = ("gain", "gain_low", "gain_high", "gain_examples")


def scores(gain: float, low: float, high: float, examples: int) -> dict[str, float]:
    return {f"test/{name}": value for name, value in zip(GAINS, (gain, low, high, float(examples)), strict=True)}


@pytest.mark.parametrize(
    ("test", "rows", "verdict"),
    [
        (TEST | scores(0.2, 0.1, 0.3, 30), 40, "higher"),
        (TEST | scores(-0.2, -0.3, -0.1, 40), 40, "lower"),
        (TEST | scores(0.05, -0.0000, 0.15, 24), 24, "no_clear_difference"),
        (TEST | scores(0.2, 0.1, 0.3, 4), 4, "too_few_examples"),
        (TEST, 24, "no_baseline"),
        ({}, 0, "no_test_rows"),
    ],
)
def test_the_verdict_is_that_of_the_log(
    client: httpx.Client, service: Service, test: dict[str, float], rows: int, verdict: str
) -> None:
    job = client.get(f"/fine-tunes/{end_study(service, test=test, test_rows=rows)}").json()
    assert (job["verdict"], job["test_rows"]) == (verdict, rows)
    assert [job[name] for name in GAINS] == [test.get(f"test/{name}") for name in GAINS]
    if job["gain"] is not None:
        assert TuningEffect.of(job["gain_low"], job["gain_high"], job["gain_examples"]) == verdict


def test_prompting_and_what_was_forgotten_are_told(client: httpx.Client, service: Service) -> None:
    few_shot = {f"test/few_shot_{name}": value for name, value in zip(GAINS, (0.2, 0.1, 0.3, 30.0), strict=True)}
    general = {"loss": 0.4, "loss_low": 0.3, "loss_high": 0.5, "checks_high": 0.1, "count": 32.0}
    facts = {
        **(TEST | scores(0.4, 0.3, 0.5, 30) | few_shot | {"few_shot/shots": 4, "few_shot/combined": 0.5}),
        **{f"forgetting/{name}": value for name, value in general.items()},
        **{"forgetting/checks_untuned": 0.375, "forgetting/checks_tuned": 0.3125},
    }
    number = end_study(service, test=facts, test_rows=40)
    job = client.get(f"/fine-tunes/{number}").json()
    assert job["few_shot"] == {
        **{"shots": 4, "score": 0.5, "gain": 0.2, "gain_low": 0.1, "gain_high": 0.3, "verdict": "higher"}
    }
    assert job["forgetting"] == {
        **{"verdict": "something", "loss": 0.4, "loss_low": 0.3, "loss_high": 0.5},
        **{"checks": 32, "checks_before": 12, "checks_after": 10},
    }
    without = client.get(f"/fine-tunes/{end_study(service, test=TEST, test_rows=40)}").json()
    assert without["few_shot"] is without["forgetting"] is None


@pytest.mark.parametrize(("facts", "n_trials"), [({}, 3), ({"choice": CHOICE}, 5)])
def test_there_is_no_choice_where_none_was_made(
    client: httpx.Client, service: Service, facts: dict[str, Any], n_trials: int
) -> None:
    number = end_study(service, n_trials=n_trials, **facts)
    assert client.get(f"/fine-tunes/{number}").json()["choice"] is None
    rows = client.get(f"/fine-tunes/{number}/leaderboard").json()
    assert [row["is_winner"] for row in rows].count(True) == (n_trials == 3)


def test_the_choice_is_described(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "no other trial is better" in schemas["ChoiceView"]["properties"]["p_best"]["description"]
    assert "Which trial won" in schemas["ChoiceView"]["description"]
    assert "choice" in schemas["JobView"]["properties"]
    assert all("description" in schemas["LeaderboardRow"]["properties"][name] for name in ("p_best", "in_set"))


def test_a_database_of_an_earlier_version_is_taken(service: Service) -> None:
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))
    service.close()
    engine = sqlalchemy.create_engine(f"sqlite:///{service.config.folder / 'service.db'}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE jobs DROP COLUMN outcome"))
    engine.dispose()
    service.open()
    assert service.jobs.get(job.id).choice is None


def test_what_a_study_does_after_its_last_trial_is_told(service: Service) -> None:
    study = optuna.create_study(study_name="s", storage=service.stores.studies, direction="maximize")
    study.set_user_attr(SPEC, {"objective": "combined"})
    began = datetime(2026, 1, 2)
    baseline = {"combined": 0.55, "combined_low": 0.5, "combined_high": 0.6, "bertscore_f1": 0.55, "judge_score": None}
    # Two trials at the same time took 60 s together; then the study waited, and another one took 30 s.
    for begins, ends, score in ((0, 60, 0.6), (0, 50, None), (1000, 1030, 0.7)):
        trial = create_trial(
            state=TrialState.FAIL if score is None else TrialState.COMPLETE,
            value=score,
            user_attrs={ATTRIBUTE: {} if score is None else {"combined": score, "baseline": baseline}},
        )
        trial.datetime_start, trial.datetime_complete = (began + timedelta(seconds=s) for s in (begins, ends))
        study.add_trial(trial)
    begin_stage(study, Stage.TESTING)
    progress = service.stores.progress("s")
    assert progress is not None
    assert (progress.stage, progress.trial_seconds, progress.validation_baseline) == ("testing", 30, baseline)
    assert abs((progress.stage_started or 0) - time.time()) < SECONDS
    end_stages(study)
    progress = service.stores.progress("s")
    assert progress is not None
    assert progress.stage is None


@pytest.mark.parametrize(
    ("known", "stage", "left"),
    [
        ({"current": None}, "preparing", None),
        ({"current": 0}, None, None),
        ({"current": 1, "finished": 1, "trial_seconds": 60.0}, None, 240.0),
        ({"current": None, "finished": 5, "trial_seconds": 60.0, "stage": "testing"}, "testing", None),
    ],
)
def test_the_time_left_is_told_as_soon_as_a_trial_has_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], stage: str | None, left: float | None
) -> None:
    monkeypatch.setattr(service.supervisor, "_watch", lambda _: None)
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5)).id
    values = {"state": JobState.RUNNING, "attempt_started": time.time(), "current_started": time.time(), **known}
    with service.jobs._database.changing() as session:
        session.execute(update(Job).where(Job.id == job).values(**values))
    view = service.jobs.get(job)
    assert (view.stage, view.seconds_left) == (stage, pytest.approx(left, abs=1) if left else None)
    assert (view.stage_seconds is None) == (stage is None)
