"""What comes after a fine-tune, over the API: more trials, and a comparison with another fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.service.served import refused
from tests.service.test_deletions import set_state

from lorahydra.service.database import Job
from lorahydra.service.launching import launch_overrides
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState

Ended = Callable[..., int]


@pytest.fixture
def ended(service: Service) -> Ended:
    """Makes fine-tunes that are complete."""

    def make(name: str = "One", trials: int = 5, state: JobState = JobState.COMPLETE, **values: Any) -> int:
        job = service.jobs.start(123, FineTuneParams(False, None, "tiny", trials), name=name).id
        set_state(service, job, state)
        known = {"finished": trials, "test_score": 0.6, "baseline_score": 0.4, "best_score": 0.7, **values}
        with service.jobs._database.changing() as session:
            session.execute(update(Job).where(Job.id == job).values(failure=None, **known))
        return job

    return make


def tables(service: Service, monkeypatch: pytest.MonkeyPatch, **scores: list[float]) -> None:
    """Gives fine-tunes these scores on test rows, by their names."""

    def table(job: Any) -> list[dict[str, Any]]:
        return [{"prompt": str(n), "reference": "", "bertscore_f1": score} for n, score in enumerate(scores[job.name])]

    monkeypatch.setattr(service.stores, "test_table", table)


def test_more_trials_go_on_with_the_same_study(client: httpx.Client, service: Service, ended: Ended) -> None:
    job = ended(trials=6, trial_seconds=10.0, outcome={"verdict": "higher"})
    before = client.get(f"/fine-tunes/{job}").json()
    assert (before["can_continue"], before["verdict"]) == (True, "higher")
    with service.jobs._database.reading() as session:
        overrides = session.get_one(Job, job).overrides
    estimate = client.get(f"/fine-tunes/{job}/continue/estimate", params={"n_trials": 10}).json()
    assert (estimate["trials"], estimate["seconds"], estimate["judge_calls"]) == (4, 40.0, 0)
    answer = client.post(f"/fine-tunes/{job}/continue", json={"n_trials": 10})
    assert answer.status_code == 202
    now = answer.json()
    assert (now["state"], now["trials_wanted"], now["params"]["n_trials"]) == ("queued", 10, 10)
    assert (now["study"], now["verdict"], now["test_score"], now["ended"]) == (before["study"], None, None, None)
    with service.jobs._database.reading() as session:
        row = session.get_one(Job, job)
    # Nothing else changes, also where fewer trials would have searched a smaller space.
    assert [o for o in row.overrides if o not in overrides] == ["hydra.sweeper.n_trials=10"]
    assert "search=small" in row.overrides
    assert launch_overrides(row, None, service.choices).count("hydra.sweeper.n_trials=10") == 1
    assert not any("n_trials=6" in override for override in launch_overrides(row, None, service.choices))


@pytest.mark.parametrize(
    ("state", "trials", "status", "code"),
    [
        (JobState.COMPLETE, 7, 422, "bad_more_trials"),
        (JobState.COMPLETE, 101, 422, "invalid"),
        (JobState.QUEUED, 20, 409, "not_ended"),
    ],
)
def test_what_is_refused_of_more_trials(
    client: httpx.Client, ended: Ended, state: JobState, trials: int, status: int, code: str
) -> None:
    job = ended(trials=7, state=state)
    refused(client.post(f"/fine-tunes/{job}/continue", json={"n_trials": trials}), status, code)
    refused(client.get(f"/fine-tunes/{job}/continue/estimate", params={"n_trials": trials}), status, code)
    assert client.get(f"/fine-tunes/{job}").json()["trials_wanted"] == 7


def test_a_cancelled_fine_tune_may_go_on_with_more_trials_up_to_the_most(client: httpx.Client, ended: Ended) -> None:
    job = ended(state=JobState.CANCELLED)
    assert client.post(f"/fine-tunes/{job}/continue", json={"n_trials": 100}).status_code == 202
    refused(client.post("/fine-tunes/99/continue", json={"n_trials": 50}), 404, "fine_tune_not_found")
    assert client.get(f"/fine-tunes/{ended(trials=100)}").json()["can_continue"] is False


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ([0.8, 0.7, 0.9, 0.75, 0.8, 0.85], "higher"),
        ([0.1, 0.2, 0.1, 0.15, 0.1, 0.2], "lower"),
        ([0.5, 0.5, 0.6, 0.4, 0.55, 0.45], "no_clear_difference"),
    ],
)
def test_the_verdict_of_a_comparison(
    client: httpx.Client,
    service: Service,
    ended: Ended,
    monkeypatch: pytest.MonkeyPatch,
    second: list[float],
    verdict: str,
) -> None:
    first = ended("One", best_params={"lora.r": 8, "training.learning_rate": 1e-4}, outcome={"test_low": 0.5})
    other = ended("Two", trials=9, best_params={"lora.r": 16, "training.learning_rate": 1e-4})
    tables(service, monkeypatch, One=[0.5, 0.45, 0.55, 0.5, 0.5, 0.5], Two=second)
    found = client.get(f"/fine-tunes/{first}/comparison/{other}").json()
    assert (found["obstacle"], found["verdict"], found["examples"]) == (None, verdict, 6)
    assert found["gain"] == pytest.approx(sum(second) / 6 - 0.5)
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert (found["first"]["id"], found["second"]["id"], found["first"]["test_low"]) == (first, other, 0.5)
    differences = {one["key"]: (one["first"], one["second"], one["is_searched"]) for one in found["differences"]}
    assert differences.pop("n_trials") == ("5", "9", False)
    assert differences.pop("lora.r") == ("8", "16", True)
    assert differences
    assert all(key.startswith("search.") for key in differences)
    back = client.get(f"/fine-tunes/{other}/comparison/{first}").json()
    assert back["gain"] == pytest.approx(-found["gain"])


def test_what_cannot_be_compared(
    client: httpx.Client, service: Service, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = ended("One"), ended("Two")
    address = f"/fine-tunes/{one}/comparison/{two}"

    def obstacle() -> str:
        found = client.get(address).json()
        assert [found[name] for name in ("verdict", "gain", "gain_low", "gain_high", "examples")] == [None] * 5
        return str(found["obstacle"])

    tables(service, monkeypatch, One=[0.5] * 6, Two=[0.5] * 7)
    assert obstacle() == "other_test_rows"
    tables(service, monkeypatch, One=[0.5] * 6, Two=[])
    assert obstacle() == "no_test_rows"
    tables(service, monkeypatch, One=[0.5] * 6, Two=[0.6] * 6)
    with service.jobs._database.changing() as session:
        row = session.get_one(Job, two)
        row.overrides = [*row.overrides, "evaluation=minilm" if "evaluation=minilm" not in row.overrides else "seed=9"]
    assert obstacle() == "other_scoring"
    set_state(service, two, JobState.CANCELLED)
    assert obstacle() == "not_complete"
    refused(client.get(f"/fine-tunes/{one}/comparison/{one}"), 422, "same_fine_tune")
    refused(client.get(f"/fine-tunes/{one}/comparison/99"), 404, "fine_tune_not_found")
