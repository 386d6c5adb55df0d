"""What MLflow's UI says about a study and its winner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lorahydra.config.compose import compose
from lorahydra.evaluation.scoring import Gain, Interval
from lorahydra.names import State
from lorahydra.sweep.mlflow_notes import model_description, study_note
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.trial.score import TrialScores

TUNED: Any = SimpleNamespace(combined=Interval(0.7, 0.6, 0.8), predictions=SimpleNamespace(texts=["a", "b"]))
SCORES = TrialScores(TUNED, None, Gain(0.3, 0.2, 0.4, 12))


def trial(number: int, score: float | None, **rest: Any) -> TrialRecord:
    state = rest.pop("state", State.COMPLETE if score is not None else State.FAILED)
    return TrialRecord(
        number,
        state,
        rest.pop("params", {"lora.r": 8, "training.learning_rate": 2e-4}),
        values=None if score is None else (score,),
        combined=score,
        combined_low=None if score is None else score - 0.1,
        combined_high=None if score is None else score + 0.1,
        run_id=f"{number:032x}",
        seconds=61,
        **rest,
    )


def cells(note: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in note.splitlines() if line.startswith("|")]


def test_leaderboard_with_links_best_first() -> None:
    records = [trial(0, 0.5), trial(1, None), trial(2, 0.6), trial(3, None, state=State.PRUNED)]
    note = study_note(records, ["maximize"], ["combined"], study="it's", experiment_id="7")
    header, _, *rows = cells(note)
    assert header == ["#", "trial", "combined", "95 %", "time", "r", "learning_rate"]
    assert rows[0] == [
        "1",
        f"[2](#/experiments/7/runs/{2:032x})",
        "0.6000",
        "0.500–0.700",
        "1 min 01 s",
        "`8`",
        "`2.0e-4`",
    ]
    assert [row[2] for row in rows] == ["0.6000", "0.5000", "pruned", "failed"]
    assert note.startswith("4 trials finished.")
    assert "[All of them in a table](#/experiments/7/runs?viewStateShareKey=lorahydra-trials-" in note


def test_the_end_of_a_study_says_whether_it_helped_and_where_the_winner_is() -> None:
    note = study_note(
        [trial(0, 0.5)],
        ["maximize"],
        ["combined"],
        study="s",
        experiment_id="7",
        test=SCORES,
        registered=("lorahydra-s", "2"),
    )
    assert "combined 0.7000 on 2 examples. Tuning helped: combined changed by +0.3000" in note
    assert "[lorahydra-s, version 2](#/models/lorahydra-s/versions/2), `models:/lorahydra-s@champion`" in note


def test_a_long_study_fits_into_a_note() -> None:
    note = study_note(
        [trial(n, n / 1000) for n in range(300)], ["maximize"], ["combined"], study="s", experiment_id="7"
    )
    assert len(note) < 5000
    shown = len(cells(note)) - 2
    assert 10 < shown < 300
    assert note.endswith(f"{300 - shown} more are not shown.")


def test_values_of_users_are_nothing_but_text() -> None:
    hostile = {"data.train_file": "a|b`\n# <script>"}
    note = study_note([trial(0, 0.5, params=hostile)], ["maximize"], ["combined"], study="s", experiment_id="7")
    assert cells(note)[2][-1] == "`a¦b' # <script>`"
    assert len(cells(note)) == 3


def test_what_is_not_used_of_the_data_is_named_and_leaves_room() -> None:
    warnings = ["a.jsonl: columns not used: <b>, `x`", *(f"{number} {'long ' * 200}" for number in range(20))]
    note = study_note([trial(0, 0.5)], ["maximize"], ["combined"], study="s", experiment_id="7", warnings=warnings)
    assert "**Data:** `a.jsonl: columns not used: <b>, 'x'`" in note
    assert "**Data:** 13 more warnings are in `data/report.json`" in note
    assert len(cells(note)) == 3
    assert len(note) < 4500


def test_other_objectives_have_columns() -> None:
    record = TrialRecord(0, State.COMPLETE, {}, values=(0.5, 12.34), combined=0.5, combined_low=0.4, combined_high=0.6)
    header, _, row = cells(
        study_note([record], ["maximize", "minimize"], ["combined", "time"], study="s", experiment_id="7")
    )
    assert header == ["#", "trial", "combined", "95 %", "time"]
    assert row[header.index("time")] == "12.3 s"


def test_where_a_model_comes_from() -> None:
    text = model_description(
        compose(["model.name_or_path=a/b"]),
        trial(3, 0.5),
        study="s",
        experiment_id="7",
        study_run="f" * 32,
        datasets={"training": "abc"},
        test=SCORES,
    )
    study = f"[`s`](#/experiments/7/runs/{'f' * 32})"
    assert f"LoRA adapter of `a/b`: [trial 3](#/experiments/7/runs/{3:032x}) of study {study}" in text
    assert ["`training data`", "`abc`"] in cells(text)
    assert ["`lora.r`", "`8`"] in cells(text)
