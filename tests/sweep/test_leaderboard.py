"""Trials, best first."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorahydra.names import State
from lorahydra.sweep.labels import duration, number, short_names, value_text
from lorahydra.sweep.leaderboard import leaderboard_csv, write_leaderboard
from lorahydra.sweep.ranking import best_so_far, pareto_front, ranked
from lorahydra.sweep.trial_record import RaceScore, TrialRecord

BOTH = ["maximize", "minimize"]
PARAMS = {
    "training.learning_rate": 2e-4,
    "lora.r": 16,
    "lora.lora_alpha": 32,
    "lora.lora_dropout": 0.05,
    "training.warmup_ratio": 0.03,
}


def complete(trial: int, *values: float, **rest: Any) -> TrialRecord:
    return TrialRecord(trial, State.COMPLETE, rest.pop("params", {"lora.r": 8}), values=values, **rest)


def other(trial: int, state: State, **rest: Any) -> TrialRecord:
    return TrialRecord(trial, state, rest.pop("params", {"lora.r": 8}), **rest)


def scored(trial: int, score: float, **rest: Any) -> TrialRecord:
    low, high = score - 0.04, score + 0.04
    return complete(trial, score, combined=score, combined_low=low, combined_high=high, **rest)


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def shown(records: list[TrialRecord], directions: list[str], objectives: list[str], width: int) -> str:
    output = io.StringIO()
    write_leaderboard(Console(file=output, width=width), records, directions, objectives)
    return output.getvalue()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_trials_that_cannot_win_come_last_and_say_why() -> None:
    why = "forgets too much: +0.300 on general texts, above search.max_forgetting=0.1"
    records = [scored(0, 0.5, forgetting=0.02), scored(1, 0.9, forgetting=0.3, excluded=why), scored(2, 0.4)]
    assert numbers(ranked(records, ["maximize"])) == [0, 2, 1]
    assert numbers(pareto_front(records, ["maximize"])) == [0]
    assert best_so_far(records, ["maximize"]) == records[0]
    assert [row["failure"] for row in rows(leaderboard_csv(records, ["maximize"], ["combined"]))] == ["", "", why]
    text = shown(records, ["maximize"], ["combined"], width=160)
    assert "forgot" in text
    assert "+0.300" in text
    assert "forgets too much" in text

    least = scored(3, 0.1, forgetting=0.2, excluded=why)
    assert best_so_far([records[1], least], ["maximize"]) == least, "none may win, and it forgets less"


def test_complete_trials_come_best_first() -> None:
    records = [complete(0, 0.1), complete(1, math.nan), complete(2, 0.3), complete(3, 0.1), complete(4, -math.inf)]
    assert numbers(ranked(records, ["maximize"])) == [2, 0, 3, 4, 1]
    assert numbers(ranked(records, ["minimize"])) == [4, 0, 3, 2, 1]


def test_the_rest_follows_by_state() -> None:
    records = [
        other(0, State.INTERRUPTED),
        other(1, State.RUNNING),
        other(2, State.FAILED, loss=0.1),
        other(3, State.PRUNED),
        other(4, State.PRUNED, loss=2.0),
        other(5, State.PRUNED, loss=1.0),
        other(6, State.PRUNED, loss=math.nan),
        other(7, State.PRUNED, loss=math.inf),
        complete(8, math.nan),
    ]
    assert numbers(ranked(records, ["maximize"])) == [8, 5, 4, 7, 3, 6, 2, 1, 0]


def test_with_several_objectives_the_front_comes_first() -> None:
    records = [
        complete(0, 0.5, 30.0),
        complete(1, 0.9, 90.0),
        complete(2, 0.8, 95.0),  # worse than 1 in both
        complete(3, 0.3, 10.0),
        complete(4, 0.9, 90.0),  # equal to 1
        complete(5, 0.99, math.nan),
        other(6, State.FAILED),
    ]
    assert numbers(pareto_front(records, BOTH)) == [1, 4, 0, 3]
    assert numbers(ranked(records, BOTH)) == [1, 4, 0, 3, 2, 5, 6]


def test_the_front_of_one_objective_is_the_best() -> None:
    assert numbers(pareto_front([complete(0, 1.0), complete(1, 2.0), complete(2, 2.0)], ["maximize"])) == [1, 2]
    assert pareto_front([], ["maximize"]) == []


def test_the_winner_is_first_and_marked_and_final_scores_decide() -> None:
    records = [
        scored(0, 0.9),  # it fell behind in the race
        scored(1, 0.7, final=RaceScore(0.66, 0.6, 0.7, 61.5, 32)),
        scored(2, 0.6, final=RaceScore(0.68, 0.6, 0.7, 62.0, 32)),
        scored(3, 0.5, final=RaceScore(0.675, 0.6, 0.7, 61.9, 32), is_winner=True),  # as good, with a smaller adapter
        scored(4, 0.95),
    ]
    assert numbers(ranked(records, ["maximize"])) == [3, 2, 1, 4, 0]
    table = rows(leaderboard_csv(records, ["maximize"], ["combined"]))
    assert [row["number"] for row in table if row["is_winner"] == "True"] == ["3"]
    assert (table[0]["rank"], table[0]["combined"], table[0]["final_combined"]) == ("1", "0.5", "0.675")
    assert (table[0]["final_judge_score"], table[0]["final_examples"]) == ("61.9", "32")
    assert table[3]["final_combined"] == ""
    text = shown(records, ["maximize"], ["combined"], 100)
    assert "* is the winner" in text
    first = next(line for line in text.splitlines() if "0.6750" in line)
    assert " ".join(first.split()) == "*1 3 0.5000 0.460–0.540 0.6750 - 8"
    assert "final" not in shown([scored(0, 0.9)], ["maximize"], ["combined"], 100)


def test_csv_has_every_trial_and_every_parameter() -> None:
    records = [
        scored(0, 0.7408, params={"lora.r": 8}, seconds=64.0, judge_score=7.25, run_id="abc", folder=Path("out/0")),
        other(1, State.FAILED, params={"lora.r": 4, "lora.bias": None}, failure="Error: a\n  b, c"),
        other(2, State.INTERRUPTED),
    ]
    first, failed, interrupted = rows(leaderboard_csv(records, ["maximize"], ["combined"]))
    assert list(first) == [
        *("rank", "number", "state", "combined", "combined_low", "combined_high", "bertscore_f1", "judge_score"),
        *("loss", "seconds", "lora.r", "lora.bias", "failure", "run_id", "folder"),
    ]
    assert (first["rank"], first["combined"], first["lora.r"], first["lora.bias"]) == ("1", "0.7408", "8", "")
    assert (first["run_id"], first["folder"], first["seconds"]) == ("abc", "out/0", "64.0")
    assert (failed["rank"], failed["lora.bias"], failed["failure"]) == ("", "null", "Error: a b, c")
    assert (interrupted["rank"], interrupted["state"]) == ("", "interrupted")


def test_csv_has_a_column_per_further_objective() -> None:
    records = [complete(0, 0.5, 30.25), complete(1, 0.9, 90.0, combined=0.9)]
    best, second = rows(leaderboard_csv(records, BOTH, ["combined", "time"]))
    assert list(best)[:5] == ["rank", "number", "state", "time", "combined"]
    assert (best["time"], second["time"], second["combined"]) == ("90.0", "30.25", "0.5")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_spreadsheet_runs_no_formula(text: str) -> None:
    record = other(0, State.FAILED, params={"name": text, text: "x"}, failure=text, folder=Path(text))
    (row,) = rows(leaderboard_csv([record], ["maximize"], ["combined"]))
    assert row["name"] == row["folder"] == f"'{text}"
    assert f"'{text}" in row
    assert not row["failure"].startswith(("=", "+", "-", "@"))


def test_numbers_stay_numbers_in_csv() -> None:
    params = {"a": -1, "b": -0.1 - 0.2, "c": True}
    (row,) = rows(leaderboard_csv([complete(0, -0.5, params=params)], ["maximize"], ["combined"]))
    assert (row["combined"], row["a"], row["b"], row["c"]) == ("-0.5", "-1", str(-0.1 - 0.2), "true")


def test_no_trials_make_an_empty_table() -> None:
    assert rows(leaderboard_csv([], ["maximize"], ["combined"])) == []
    assert "Trials, best first" in shown([], ["maximize"], ["combined"], 80)


def test_five_parameters_fit_in_100_columns() -> None:
    records = [scored(index, 0.7408 - index / 100, params=PARAMS, seconds=64.0) for index in range(3)]
    text = shown(records, ["maximize"], ["combined"], 100)
    line = next(line for line in text.splitlines() if "0.7408" in line)
    assert " ".join(line.split()) == "1 0 0.7408 0.701–0.781 1 min 04 s 2.0e-4 16 32 0.05 0.03"
    assert "training." not in text
    assert "judge" not in text
    assert "reason" not in text


def test_five_parameters_fit_with_all_other_columns() -> None:
    records = [
        scored(0, 0.7408, params=PARAMS, seconds=64.0, judge_score=7.25),
        other(1, State.FAILED, params=PARAMS, failure="TrainingError: out of memory"),
    ]
    text = shown(records, ["maximize"], ["combined"], 100)
    line = next(line for line in text.splitlines() if "0.7408" in line)
    assert " ".join(line.split()) == "1 0 0.7408 0.701–0.781 7.25 1 min 04 s 2.0e-4 16 32 0.05 0.03"
    assert "reason" in text
    assert "details" not in text


@pytest.mark.parametrize("width", [100, 80, 60, 40, 30])
def test_nothing_is_cut_on_a_narrow_terminal(width: int) -> None:
    failure = "TrainingError: out of memory"
    records = [
        scored(0, 0.7408, params=PARAMS, seconds=64.0, judge_score=7.25),
        other(1, State.FAILED, params=PARAMS, failure=failure),
    ]
    text = shown(records, ["maximize"], ["combined"], width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("0.7408", "0.701–0.781", "2.0e-4", "0.05", "failed", "memory"):
        assert part in text


def test_interrupted_trials_are_not_shown() -> None:
    records = [scored(0, 0.5), other(1, State.INTERRUPTED), other(2, State.RUNNING), other(3, State.PRUNED)]
    text = shown(records, ["maximize"], ["combined"], 120)
    assert "interrupted" not in text
    assert all(shown in text for shown in ("0.5000", "running", "pruned"))


def test_brackets_are_not_markup_and_reasons_are_short() -> None:
    record = other(0, State.FAILED, params={"lora.bias": "[red]all[/red]"}, failure="E: [/bold]\n" + "x" * 200)
    text = shown([record], ["maximize"], ["combined"], 200)
    assert "[red]all[/red]" in text
    assert "E: [/bold] xxx" in text
    assert text.count("x") < 80
    assert "…" in text


def test_further_objectives_have_columns() -> None:
    records = [complete(0, 0.5, 30.25, 1.5, combined=0.5, seconds=999.0)]
    text = shown(records, [*BOTH, "minimize"], ["combined", "time", "size"], 120)
    assert "size" in text
    assert "1.5" in text
    assert "30.2 s" in text
    assert "16 min" not in text


def test_the_front_shows_objectives_and_parameters() -> None:
    records = [complete(0, 0.5, 30.0), complete(1, 0.9, 90.0), complete(2, 0.4, 95.0)]
    _, title, text = shown(records, BOTH, ["combined", "time"], 80).partition("Pareto front")
    assert title
    assert all(part in text for part in ("0.5000", "30.0 s", "0.9000", "1 min 30 s", "r"))
    assert "0.4000" not in text


def test_names_are_short_where_they_are_clear() -> None:
    names = ["lora.r", "training.seed", "data.seed", "judge.time", "+model"]
    assert short_names(names, taken=["time"]) == {
        "lora.r": "r",
        "training.seed": "training.seed",
        "data.seed": "data.seed",
        "judge.time": "judge.time",
        "+model": "model",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (64.0, "1 min 04 s"),
        (3599.7, "1 h 00 min"),
        (7500.0, "2 h 05 min"),
    ],
)
def test_times_are_words(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "2.0e-4"), (0.05, "0.05"), (0.0, "0"), (1.0, "1"), (-3e7, "-3.0e7"), (12345.0, "12345"), (math.inf, "inf")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_values_look_as_in_a_config() -> None:
    assert [value_text(value) for value in (None, True, 16, "all", [0.5, "q"], {"a": None})] == [
        *("null", "true", "16", "all", "[0.5, q]", "{a: null}")
    ]
