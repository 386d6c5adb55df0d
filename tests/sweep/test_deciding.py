"""Which trial wins, and what a study says about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lorahydra.config.compose import compose
from lorahydra.errors import NotRecordedError
from lorahydra.names import State
from lorahydra.sweep import deciding
from lorahydra.sweep.choice import Choice, with_choice
from lorahydra.sweep.trial_record import TrialRecord

NOISE = np.random.default_rng(0).normal(0, 0.1, 40)


class Tables:
    """The predictions tables of trials, by the number in their run's id."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: dict[str, str] = {}
        monkeypatch.setattr(deciding, "read_text", self._read)

    def _read(self, tracking: Any, run_id: str, artifact: str) -> str | None:
        if run_id not in self.texts:
            raise NotRecordedError("deleted")
        return self.texts[run_id]

    def add(
        self,
        number: int,
        scores: Sequence[float],
        judge: Sequence[float | None] | None = None,
        exact_match: Sequence[float] | None = None,
        **rest: Any,
    ) -> TrialRecord:
        rows = [
            [f"prompt {n}", "reference", score, *(None if more is None else more[n] for more in (judge, exact_match))]
            for n, score in enumerate(scores)
        ]
        columns = ["prompt", "reference", "bertscore_f1", "judge_score", "exact_match"]
        self.texts[f"run {number}"] = json.dumps({"columns": columns, "data": rows})
        mean = float(np.mean(scores))
        return TrialRecord(number, State.COMPLETE, {"lora.r": 8}, values=(mean,), run_id=f"run {number}", **rest)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Tables:
    return Tables(monkeypatch)


def decide(
    records: list[TrialRecord], *overrides: str, objectives: Sequence[str] = ("combined",)
) -> tuple[TrialRecord, Choice | None]:
    run: Any = SimpleNamespace(config=compose([*overrides]), objectives=list(objectives))
    best = max(records, key=lambda record: record.values or ())
    scores = deciding.score_tables(run, records, best)
    return (best, None) if scores is None else deciding.decide(run, records, best, scores)


def near(distance: float, seed: int) -> list[float]:
    """Scores that are lower by `distance` on average, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, 40)
    return list(0.7 + NOISE + noise - noise.mean() - distance)


def test_of_trials_that_are_as_good_the_smallest_adapter_wins_and_the_study_says_why(tables: Tables) -> None:
    records = [
        tables.add(0, near(0.0, 1), adapter_bytes=8_000_000),
        tables.add(1, near(0.004, 2), adapter_bytes=2_000_000),
        tables.add(2, near(0.002, 3), adapter_bytes=2_000_000),
        tables.add(3, near(0.009, 4), adapter_bytes=1_000_000),  # farther than what does not matter
        tables.add(4, near(0.3, 5), adapter_bytes=1_000_000),
    ]
    winner, choice = decide(records)
    assert winner is records[2]
    assert choice is not None
    assert (choice.winner, choice.best, choice.examples) == (2, 0, 40)
    assert set(choice.set) == {0, 1, 2, 3}
    assert choice.p_best[4] < 0.01
    assert sum(choice.p_best.values()) == pytest.approx(1)
    assert choice.sentences.startswith(
        "Winner: trial 2, whose adapter (2.0 MB) is smaller than that of trial 0 (8.0 MB), which has the highest "
        "combined and is not clearly better. P(best) is 0."
    )
    assert Choice.from_facts(json.loads(json.dumps(choice.facts))) == Choice.from_facts(choice.facts)
    shown = {record.number: (record.p_best, record.in_set) for record in with_choice(records, choice, 2)}
    assert shown[4] == (choice.p_best[4], False)

    for override in ("search.indifference=0", "search.indifference=0.001"):
        winner, choice = decide(records, override)
        assert winner is records[0]
        assert choice is not None
        assert "Winner: trial 0, which has the highest combined." in choice.sentences


def test_an_adapter_that_is_no_smaller_does_not_win(tables: Tables) -> None:
    """Nor one whose size an earlier version did not record."""
    records = [
        tables.add(0, near(0.0, 1), adapter_bytes=4),
        tables.add(1, near(0.001, 2), adapter_bytes=4, seconds=1.0),
        tables.add(2, near(0.001, 3)),
    ]
    assert decide(records)[0] is records[0]


def test_scores_that_cannot_be_compared_are_left_out(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    records = [tables.add(0, near(0.0, 1)), tables.add(1, near(0.1, 2)), tables.add(2, near(0.2, 3)[:30])]
    records.append(TrialRecord(3, State.COMPLETE, {}, values=(0.1,), run_id="deleted"))
    _, choice = decide(records)
    assert choice is not None
    assert choice.p_best.keys() == {0, 1}
    assert "P(best) leaves out trials 2, 3" in caplog.text
    assert with_choice(records, choice, 0)[3].p_best is None

    del tables.texts["run 0"]
    assert decide(records) == (records[0], None)
    assert "The scores of trial 0 cannot be read" in caplog.text


def test_some_studies_do_not_say_how_sure_they_are(tables: Tables) -> None:
    records = [tables.add(0, [0.5] * 4), tables.add(1, [0.4] * 4)]
    assert decide(records)[1] is None, "four examples"
    records = [tables.add(0, near(0.0, 1)), tables.add(1, near(0.1, 2))]
    assert decide(records)[1] is not None
    assert decide(records, objectives=["loss"])[1] is None
    assert decide(records, objectives=["combined", "time"])[1] is None
    varied = [*records, TrialRecord(2, State.COMPLETE, {"evaluation.lang": "en"}, values=(0.1,), run_id="x")]
    assert decide(varied)[1] is None


def test_trials_with_too_few_verdicts_are_named(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    few: list[float | None] = [90.0] * 4 + [None] * 36
    records = [
        tables.add(0, near(0, 1), judge=[80.0 + n % 5 for n in range(40)]),
        tables.add(1, near(0, 2), judge=few),
        tables.add(2, near(0, 3), judge=[40.0 + n % 7 for n in range(40)]),
    ]
    run: Any = SimpleNamespace(config=compose(["judge=openai", "judge.model=m"]), objectives=["combined"])
    scores = deciding.score_tables(run, records, records[0])
    assert scores is not None
    deciding.decide(run, records, records[0], scores)
    assert "P(best) leaves out trials 1: too few of their examples were judged" in caplog.text


def test_the_judge_counts_where_it_gave_verdicts(tables: Tables) -> None:
    some: list[float | None] = [80.0, 60.0, 90.0, 70.0, 85.0, 75.0] + [None] * 34
    worse: list[float | None] = [20.0, 10.0, 15.0, 30.0, 5.0, 20.0] + [None] * 34
    records = [tables.add(0, near(0.0, 1), some), tables.add(1, near(0.0, 2), worse)]
    best, choice = decide([records[0], records[1]])
    assert choice is not None
    assert (choice.set, choice.examples) == ((best.number,), 6)
    _, choice = decide(records, objectives=["judge_score"])
    assert choice is not None
    assert choice.regret_bound == 0


def test_settings_that_were_trained_with_several_seeds_are_compared_by_their_means(tables: Tables) -> None:
    """The best trial was lucky with its seed: the mean of its setting is lower than that of another one."""
    run: Any = SimpleNamespace(config=compose([]), objectives=["combined"])
    records = [tables.add(0, near(0.0, 1)), tables.add(1, near(0.01, 2)), tables.add(2, near(0.02, 3))]
    by_seed = {0: [0.0, 0.2, 0.2], 1: [0.01, 0.01, 0.012], 2: [0.02, 0.1, 0.3]}
    scores = {}
    for number, behind in by_seed.items():
        repeats = [tables.add(100 + 10 * number + n, near(d, 50 + 10 * number + n)) for n, d in enumerate(behind[1:])]
        runs = [records[number], *repeats]
        scores[number] = [
            table for each in runs if (table := deciding.read_scores(run.config, each.run_id)) is not None
        ]
    decided = deciding.decide_settings(run, records, scores)
    assert decided is not None
    winner, choice = decided
    assert winner is records[1]
    assert (choice.best, choice.seeds) == (1, 2)
    assert choice.p_best.keys() == {0, 1, 2}
    assert "Winner: trial 1, which has the highest combined mean over 3 seeds. P(best) is 0." in choice.sentences
    assert "on 40 examples and 3 seeds" in choice.sentences
    assert 0 in choice.set, "seeds differ so much that the other setting may be as good"
    assert Choice.from_facts(json.loads(json.dumps(choice.facts))) == Choice.from_facts(choice.facts)
    alike = {number: [tables_[0]] * 3 for number, tables_ in scores.items()}
    certain = deciding.decide_settings(run, records, alike)
    assert certain is not None
    assert certain[1].regret_bound < choice.regret_bound


def test_what_counts_decides(tables: Tables) -> None:
    right = np.arange(40) % 4 > 0
    records = [
        tables.add(0, np.full(40, 0.9), exact_match=(~right).astype(float).tolist()),
        tables.add(1, np.full(40, 0.5), exact_match=right.astype(float).tolist()),
    ]
    chosen = ["metrics=exact_match", "evaluation.weights={exact_match: 1.0}"]
    run: Any = SimpleNamespace(config=compose(chosen), objectives=["combined"])
    scores = deciding.score_tables(run, records, records[1])
    assert scores is not None
    winner, choice = deciding.decide(run, records, records[1], scores)
    assert choice is not None
    assert (winner.number, choice.set) == (1, (1,))
    assert choice.regret_bound < 0.01
