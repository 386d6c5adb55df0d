"""What a trial says in the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lorahydra.evaluation import Evaluation, EvaluationSet, Predictions
from lorahydra.evaluation.scoring import Gain, Interval
from lorahydra.metrics.bertscore import BertScores
from lorahydra.trial.score import TrialScores
from lorahydra.trial.summary import write_scores, write_summary


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Gain(0.1, 0.05, 0.15, 5), "Tuning helped: combined changed by +0.1000, 95 % interval +0.0500 to +0.1500"),
        (Gain(-0.1, -0.2, -0.05, 5), "Tuning hurt: combined changed by -0.1000"),
        (Gain(0.1, -0.05, 0.2, 5), "No clear difference: combined changed by +0.1000"),
        (
            Gain(0.1, 0.05, 0.15, 3),
            "3 examples are too few to say whether tuning helped: at least 5 are needed (combined changed by +0.1000)",
        ),
        (Gain(-0.1, -0.2, -0.05, 1, judged=True), "1 judged example is too few to say whether tuning helped"),
    ],
)
def test_the_verdict_is_honest(gain: Gain, words: str) -> None:
    assert gain.sentence.startswith(words)


def evaluation(answer: str, score: float) -> Evaluation:
    predictions = Predictions([answer], BertScores([score], [score], [score]), 0, 1.0, 1.0)
    return Evaluation(predictions, None, Interval(score, score, score))


def written(baseline: Evaluation | None, gain: Gain | None) -> str:
    output = io.StringIO()
    examples = EvaluationSet([[1]], ["[bold]What?[/bold]"], ["Это эталон."], "digest")
    scores = TrialScores(evaluation("[/red] tuned", 0.75), baseline, gain)
    write_summary(Console(file=output, width=120), examples, scores)
    return output.getvalue()


def test_answers_stand_side_by_side_as_they_are() -> None:
    text = written(evaluation("untuned", 0.5), Gain(0.25, 0.2, 0.3, 8))
    for part in (
        "[bold]What?[/bold]",
        "Это эталон.",
        "untuned",
        "[/red] tuned",
        "0.5000",
        "0.7500",
        "+0.2500",
        "Tuning helped",
    ):
        assert part in text


def test_the_verdict_is_one_line_of_a_narrow_log() -> None:
    output = io.StringIO()
    write_scores(Console(file=output, width=40), TrialScores(evaluation("tuned", 0.75), None, Gain(0.25, 0.2, 0.3, 8)))
    assert Gain(0.25, 0.2, 0.3, 8).sentence in output.getvalue().splitlines()


def test_without_a_baseline_there_is_no_difference() -> None:
    text = written(None, None)
    assert "0.7500" in text
    assert "Tuning" not in text
