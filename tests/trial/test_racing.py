"""Trials of a study race for verdicts of a judge on a loopback server, which scores answers by their quality."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.judges.wire import KEY, MODEL, JudgeServer, Request, judge_server
from tests.support.stores import client_of

from lorahydra.config.compose import compose
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import JudgeCoverageError, JudgeError
from lorahydra.evaluation import EvaluationSet, Predictions
from lorahydra.evaluation.judging import choose
from lorahydra.judges import loading
from lorahydra.metrics.bertscore import BertScores
from lorahydra.names import ANSWERS_FILE, Kind, State
from lorahydra.tracking import start_run
from lorahydra.trial.finalists import find_trials
from lorahydra.trial.predict import TrialPredictions
from lorahydra.trial.racing import Raced, race_trials
from lorahydra.trial.saved import SavedTrial, save_trial

pytestmark = [pytest.mark.slow, pytest.mark.service]

EXAMPLES = 40


def quality(trial: int, example: int) -> int:
    """Trial 0 is clearly bad, and trial 1 is a little better than trial 2."""
    if trial == 0:
        return example % 2
    return 3 + (example % (5 if trial == 1 else 9) == 1) + (example % 3 == 0)


def good(request: Request, attempt: int = 1) -> str:
    found = re.search(r"answer (\d+) of trial (\d+)", request.user)
    assert found is not None
    score = quality(int(found[2]), int(found[1]))
    return "says " + json.dumps({"reasoning": "so", "scores": dict.fromkeys(request.criteria, score)})


class Field:
    """Saved trials, with the settings of a study."""

    def __init__(self, folder: Path, trials: int) -> None:
        self.folder, self.trials = folder, [folder / str(number) for number in range(trials)]
        examples = EvaluationSet([], [f"q {n}" for n in range(EXAMPLES)], ["r"] * EXAMPLES, "digest")
        config = self.settings(JudgeServer(url="http://127.0.0.1:1"))
        for number, trial in enumerate(self.trials):
            texts = [f"answer {n} of trial {number}" for n in range(EXAMPLES)]
            f1 = [0.5 + 0.001 * (n % 5) for n in range(EXAMPLES)]
            bertscore = BertScores(f1, f1, f1)
            with start_run(config.tracking, output_dir=trial, kind=Kind.TRIAL, run_name=str(number), tags={}) as run:
                run.finish(State.COMPLETE)
            tuned = Predictions(texts, bertscore, 0, 1.0, 1.0)
            save_trial(SavedTrial(trial, run.run_id, config, TrialPredictions(examples, tuned, None, steps=2)))
        self.runs = [json.loads((trial / "answers.json").read_text())["run_id"] for trial in self.trials]

    def settings(self, server: JudgeServer, *overrides: str) -> ExperimentConfig:
        return compose(
            [
                *("judge=gemini", f"judge.model={MODEL}", f"judge.base_url={server.gemini}", "judge.self_test=false"),
                "judge.max_output_tokens=100",
                *(f"tracking.uri=sqlite:///{self.folder / 'mlflow.db'}", "tracking.system_metrics=false", *overrides),
            ]
        )

    def first(self) -> dict[Path, Sequence[float | None]]:
        chosen = choose(EXAMPLES, 5, 42)
        return {
            trial: [20.0 * quality(number, n) if n in chosen else None for n in range(EXAMPLES)]
            for number, trial in enumerate(self.trials)
        }

    def race(self, server: JudgeServer, *overrides: str) -> Raced:
        return race_trials(self.first(), self.settings(server, *overrides), None)


@pytest.fixture
def field(place: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Field]:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    yield Field(place, 3)
    loading.close_session()


def test_a_race_that_fails_goes_on_and_asks_for_no_verdict_twice(field: Field) -> None:
    up = True

    def fails_later(request: Request, attempt: int) -> str:
        return good(request) if server.calls < 18 and up else "503"

    impatient = ("judge.max_retries=0", "judge.concurrency=1", "search.indifference=0")
    with judge_server(fails_later) as server:
        with pytest.raises(JudgeError, match="unavailable"):
            field.race(server, *impatient)
        given = Counter(request.user for request in server.requests[:17])
        server.plan = good
        raced = field.race(server, *impatient)
        asked = Counter(request.user for request in server.requests)
        assert all(asked[user] == 1 for user in given)
        calls = server.calls
        assert field.race(server, *impatient).verdicts == raced.verdicts
        assert server.calls == calls
    assert raced.best == field.trials[1]
    assert raced.race.verdicts <= 3 * (EXAMPLES - 5)
    rounds = {
        number: sum(score is not None for score in raced.verdicts[folder]) for number, folder in enumerate(field.trials)
    }
    assert rounds[0] < rounds[1] == rounds[2], "one that is clearly behind gets no more verdicts"
    metrics = [client_of(field.folder).get_run(run_id).data.metrics for run_id in field.runs]
    assert ["final/combined" in values for values in metrics] == [False, True, True]
    expected = [quality(1, n) for n in range(EXAMPLES) if raced.verdicts[field.trials[1]][n] is not None]
    assert metrics[1]["final/judge_score"] == pytest.approx(20 * sum(expected) / len(expected))


def test_calls_are_limited_even_without_a_cache(field: Field) -> None:
    with judge_server(good) as server:
        raced = field.race(server, "judge.max_calls=30", "judge.cache=false", "search.indifference=0")
        # The first five verdicts of each trial are not in the cache here, as after a race on another machine.
        assert server.calls <= 30 + 3 * 5
    assert 15 <= raced.race.verdicts <= 30


def test_half_of_the_money_is_left_for_the_test_split(field: Field) -> None:
    prices = ("judge.prompt_price=1000", "judge.completion_price=1000")
    with judge_server(good) as server:
        settings = field.settings(server, *prices, "judge.max_cost=20", "search.indifference=0")
        raced = race_trials(field.first(), settings, None)
        session = loading.load_session(settings.judge)
    assert session is not None
    assert 0 < session.purse.spent <= 10
    assert raced.race.reason == "no more verdicts can be had"
    assert raced.race.examples in (5, 10, 20)


def test_a_trial_on_which_the_judge_gives_too_few_verdicts_cannot_win(
    field: Field, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks(request: Request, attempt: int) -> str:
        return "blocked" if "of trial 1" in request.user else good(request)

    with judge_server(blocks) as server:
        raced = field.race(server, "judge.max_retries=0", "search.indifference=0")
        assert raced.best == field.trials[2]
        assert f"{field.trials[1]} leaves the race: too few verdicts" in caplog.text
    with (
        judge_server(lambda request, attempt: "blocked") as server,
        pytest.raises(JudgeCoverageError, match="too few verdicts on each of the trials"),
    ):
        field.race(server, "judge.max_retries=0", "search.indifference=0")


def test_repeats_are_no_trials_that_are_judged_again(tmp_path: Path) -> None:
    trial, repeat = tmp_path / "study" / "7", tmp_path / "study" / "repeats" / "7-43"
    other = tmp_path / "repeats" / "3"
    for folder in (trial, repeat, other):
        folder.mkdir(parents=True)
        (folder / ANSWERS_FILE).touch()
    assert find_trials([tmp_path]) == [other, trial]
    assert find_trials([repeat]) == [repeat]
