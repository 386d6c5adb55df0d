"""Combines the scores of predictions into one number with its interval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import JudgeCoverageError
from lorahydra.evaluation.predictions import Predictions
from lorahydra.evaluation.scoring import ExampleScores, Interval, combined_interval
from lorahydra.judges import Judgement
from lorahydra.names import Score

__all__ = ["Evaluation", "evaluate", "judged_alike", "require_coverage"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Predictions with all their scores."""

    predictions: Predictions
    verdicts: Judgement | None
    """The judge's verdicts; None without a judge."""
    combined: Interval
    """`combined` with its 95 % interval."""

    @property
    def example_scores(self) -> ExampleScores:
        """The scores of each example, for comparing two evaluations."""
        return _example_scores(self.predictions, self.verdicts)

    @property
    def means(self) -> dict[str, float]:
        """Mean scores by the name they have behind a metric's prefix."""
        return self.predictions.means | self.judged_means

    @property
    def judged_means(self) -> dict[str, float]:
        """The mean scores that depend on the judge; the judge's own only if a verdict counts."""
        means: dict[str, float] = {}
        if self.verdicts is not None:
            means[Score.JUDGE_COVERAGE] = self.verdicts.coverage
            if self.verdicts.score is not None:
                means[Score.JUDGE_SCORE] = self.verdicts.score
        return {
            **means,
            Score.COMBINED: self.combined.mean,
            Score.COMBINED_LOW: self.combined.low,
            Score.COMBINED_HIGH: self.combined.high,
        }


def evaluate(predictions: Predictions, verdicts: Judgement | None, config: EvaluationConfig, seed: int) -> Evaluation:
    """Combine the scores of predictions; `seed` draws the resamples of the interval.

    Raises:
        LorahydraError: Too few of the chosen examples got a verdict; the message says what ended judging, or names the
            most frequent fault.
    """
    if verdicts is not None:
        require_coverage(verdicts)
    return Evaluation(predictions, verdicts, combined_interval(_example_scores(predictions, verdicts), config, seed))


def require_coverage(verdicts: Judgement) -> None:
    """Refuse a judgement that covers too few of the chosen examples; raises as `evaluate` does."""
    least = verdicts.session.config.min_coverage
    if verdicts.coverage < least or not verdicts.judged:
        raise verdicts.error or JudgeCoverageError(
            f"judge {verdicts.session.config.name} gave a verdict on {verdicts.judged} of {verdicts.chosen} "
            f"predictions, fewer than judge.min_coverage={least} asks for; most often: {verdicts.main_fault}"
        )


def judged_alike(evaluations: Sequence[Evaluation], config: EvaluationConfig, seed: int) -> list[Evaluation]:
    """Evaluations of predictions for the same prompts, with means over the examples that all of them have a verdict on.

    A judge does not fail at random: a filter stops the worst predictions. If one model's verdict on an example is
    missing and the others' counted, the means would be over different examples, and the worst prediction would gain.

    Raises:
        JudgeCoverageError: No example has a verdict in each of them.
    """
    judges = [scores for each in evaluations if (scores := each.example_scores.judge) is not None]
    examples = list(zip(*judges, strict=True))
    if judges and all(None in scores for scores in examples):
        raise JudgeCoverageError("no example has a verdict on each of the predictions that are compared")
    unequal = frozenset(n for n, scores in enumerate(examples) if 0 < scores.count(None) < len(scores))
    if not unequal:
        return list(evaluations)
    logger.warning(
        "%d examples are left out of the judge's means: not all of the predictions that are compared have a verdict",
        len(unequal),
    )
    alike = []
    for each in evaluations:
        verdicts = each.verdicts and each.verdicts.without(unequal)
        counting = _example_scores(each.predictions, verdicts)
        alike.append(Evaluation(each.predictions, verdicts, combined_interval(counting, config, seed)))
    return alike


def _example_scores(predictions: Predictions, verdicts: Judgement | None) -> ExampleScores:
    judge = None if verdicts is None else verdicts.scores
    return ExampleScores(predictions.scores, judge, predictions.bertscore.lowest)
