"""Which answers are judged, and what counts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from lorahydra.config.judge import CriterionConfig, JudgeConfig, RubricConfig
from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import JudgeError
from lorahydra.evaluation import Evaluation, Predictions, evaluate, judged_alike
from lorahydra.evaluation.judging import choose
from lorahydra.evaluation.scoring import ExampleScores, combine, combined_interval, gain
from lorahydra.judges import (
    Fault,
    Judge,
    JudgeCase,
    JudgeFault,
    Judgement,
    JudgePrompt,
    JudgeReply,
    SingleSession,
    start_judging,
)
from lorahydra.metrics.bertscore import BertScores
from lorahydra.names import BERTSCORE
from lorahydra.utils.progress import Progress

CONFIG = EvaluationConfig(bootstrap_samples=200)


def by_bertscore(f1: Sequence[float], judge: Sequence[float | None] | None, lowest: float = 0.0) -> ExampleScores:
    """Scores of examples without other metrics."""
    return ExampleScores({BERTSCORE: f1}, judge, lowest)


class FixedJudge(Judge):
    """Gives the score that the answer names; nothing for an answer of `None`."""

    model = "m"
    runs_here = True

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        if prompt.case.answer == "None":
            raise JudgeFault(Fault.EMPTY)
        reply = {"reasoning": "why", "scores": {"c": float(prompt.case.answer) / 20}}
        return JudgeReply(json.dumps(reply), self.model, fractions=True)


def verdicts(scores: list[float | None], chosen: list[int], count: int, coverage: float = 0.8) -> Judgement:
    rubric = RubricConfig(criteria={"c": CriterionConfig("Is it right?")})
    config = JudgeConfig(min_coverage=coverage, max_retries=0, rubric=rubric)
    cases: list[JudgeCase | None] = [None] * count
    for index, score in zip(chosen, scores, strict=True):
        cases[index] = JudgeCase("q", "r", str(score))
    return start_judging(SingleSession(config, FixedJudge(), None), cases).wait(Progress(live=False))


def predictions(f1: list[float]) -> Predictions:
    return Predictions(["text"] * len(f1), BertScores(f1, f1, f1), 0, 1.0, 1.0)


def test_the_documented_example() -> None:
    assert round(combine({BERTSCORE: 0.8234}, 78.50, CONFIG), 4) == 0.8004
    result = evaluate(predictions([0.8234] * 4), verdicts([78.0, 79.0], [0, 2], 4), CONFIG, 1)
    assert round(result.combined.mean, 4) == 0.8004
    assert result.means["judge_score"] == 78.5
    assert result.means["judge_coverage"] == 1


def test_the_same_examples_for_every_trial() -> None:
    assert choose(32, 5, 42) == choose(32, 5, 42)
    assert len(set(choose(32, 5, 42))) == 5
    assert len({tuple(choose(32, 5, seed)) for seed in range(20)}) > 15
    assert choose(32, "all", 1) == choose(32, 32, 1) == choose(32, 99, 1) == list(range(32))


def test_missing_verdicts_count_for_nothing() -> None:
    result = evaluate(
        predictions([0.5] * 5), verdicts([100.0, 100.0, None, 100.0, 100.0], [0, 1, 2, 3, 4], 5), CONFIG, 1
    )
    assert result.verdicts is not None
    assert result.verdicts.score == 100
    assert result.verdicts.judged == 4
    assert result.combined.mean == pytest.approx(0.4 * 0.5 + 0.6)


@pytest.mark.parametrize(("scores", "coverage"), [([100.0, None], 0.8), ([None, None], 0.0)])
def test_too_few_verdicts_are_an_error(scores: list[float | None], coverage: float) -> None:
    with pytest.raises(JudgeError, match="of 2 predictions, fewer than judge.min_coverage=.* most often: empty reply"):
        evaluate(predictions([0.5, 0.5]), verdicts(scores, [0, 1], 2, coverage), CONFIG, 1)


def test_verdicts_that_are_missing_widen_the_interval_and_one_tells_nothing() -> None:
    judged, f1 = [40.0, 60.0] * 15, [0.45, 0.55] * 15
    widths = []
    for count in (30, 10, 5, 1):
        interval = combined_interval(by_bertscore(f1, [*judged[:count], *[None] * (30 - count)]), CONFIG, 3)
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths)
    assert widths[-1] == 1


def test_a_gain_compares_what_was_judged_on_both_sides() -> None:
    before = by_bertscore([0.5] * 4, [10.0, None, 90.0, None])
    after = by_bertscore([0.5] * 4, [20.0, 99.0, None, None])
    difference = gain(after, before, CONFIG, 1)
    assert difference.mean == pytest.approx(0.6 * 0.1)
    with pytest.raises(ValueError, match="no example has a verdict"):
        gain(by_bertscore([0.5] * 2, [1.0, None]), by_bertscore([0.5] * 2, [None, 1.0]), CONFIG, 1)


def test_what_is_compared_is_judged_on_the_same_examples(caplog: pytest.LogCaptureFixture) -> None:
    """A filter that stops the worst answer would lift the mean of the model that gave it."""
    after = evaluate(predictions([0.5] * 6), verdicts([60.0, None, 80.0, 70.0, 90.0], [0, 1, 2, 3, 5], 6), CONFIG, 1)
    before = evaluate(predictions([0.4] * 6), verdicts([50.0, 20.0, 60.0, 80.0, None], [0, 1, 2, 3, 5], 6), CONFIG, 1)
    alike = judged_alike([after, before], CONFIG, 1)
    assert [each.means["judge_score"] for each in alike] == [pytest.approx(70), pytest.approx(190 / 3)]
    assert [each.means["judge_coverage"] for each in alike] == [0.8, 0.8]
    assert [each.verdicts.judged for each in alike if each.verdicts] == [3, 3]
    difference = gain(alike[0].example_scores, alike[1].example_scores, CONFIG, 1)
    assert difference.mean == pytest.approx(alike[0].combined.mean - alike[1].combined.mean)
    assert difference.count == 3
    assert "2 examples are left out of the judge's means" in caplog.text
    assert judged_alike([after, after], CONFIG, 1) == [after, after]
    with pytest.raises(JudgeError, match="no example has a verdict on each of the predictions"):
        judged_alike([_one(1.0, None), _one(None, 1.0)], CONFIG, 1)


def _one(*scores: float | None) -> Evaluation:
    return evaluate(predictions([0.5, 0.5]), verdicts(list(scores), [0, 1], 2, coverage=0.5), CONFIG, 1)
