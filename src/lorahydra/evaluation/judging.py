"""Chooses which predictions are judged, and computes the mean of the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from lorahydra.errors import JudgeCoverageError
from lorahydra.evaluation.predictions import EvaluationSet
from lorahydra.judges import JudgeCase, Judgement, JudgeSession, start_judging
from lorahydra.names import Score
from lorahydra.utils.progress import Progress

__all__ = ["Judging", "check_coverage", "choose", "judge_means"]


def choose(count: int, n_examples: int | str, seed: int) -> list[int]:
    """Positions of the examples to judge, ascending; the same for the same seed and number of examples.

    Args:
        count: How many examples there are.
        n_examples: How many to judge, or `all`.
        seed: Draws them.
    """
    if n_examples == "all" or int(n_examples) >= count:
        return list(range(count))
    drawn = np.random.default_rng([seed, count]).permutation(count)[: int(n_examples)]
    return sorted(int(position) for position in drawn)


def judge_means(judgement: Judgement) -> dict[Score, float]:
    """Score and coverage; no score if there is no verdict that counts."""
    means = {Score.JUDGE_COVERAGE: judgement.coverage}
    return means if judgement.score is None else {Score.JUDGE_SCORE: judgement.score, **means}


def check_coverage(judgement: Judgement) -> None:
    """Make sure that there are enough verdicts to compare trials.

    Raises:
        LorahydraError: There are too few; the message says what ended judging, or names the most frequent fault.
    """
    config = judgement.session.config
    if judgement.coverage >= config.min_coverage and judgement.judged:
        return
    if judgement.error is not None:
        raise judgement.error
    raise JudgeCoverageError(
        f"judge {config.name} gave a verdict on {judgement.judged} of {judgement.chosen} predictions, fewer than "
        f"judge.min_coverage={config.min_coverage} asks for; most often: {judgement.main_fault}"
    )


class Judging:
    """Judging of several models' predictions for the same examples, one set of predictions after another.

    After the end of its block no further call begins.

    Args:
        session: The judge; None without one.
        examples: The prompts and references.
        seed: Draws the examples that are judged.
        n_examples: How many are judged; `judge.n_examples` by default.
        repeats: Number of verdicts for each.
    """

    def __init__(
        self,
        session: JudgeSession | None,
        examples: EvaluationSet,
        seed: int,
        *,
        n_examples: int | str | None = None,
        repeats: int = 1,
    ) -> None:
        self.session = session
        self._examples = examples
        self._repeats = repeats
        count = len(examples.texts)
        self._chosen = choose(count, n_examples or session.config.n_examples, seed) if session is not None else []
        self._judgements: list[Judgement | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for judgement in self._judgements:
            if judgement is not None:
                judgement.stop()

    def start(self, predictions: Sequence[str]) -> None:
        """Begin with a model's predictions for all examples."""
        if self.session is None:
            self._judgements.append(None)
            return
        cases: list[JudgeCase | None] = [None] * len(predictions)
        for index in self._chosen:
            cases[index] = JudgeCase(self._examples.texts[index], self._examples.references[index], predictions[index])
        self._judgements.append(start_judging(self.session, cases, self._repeats))

    def verdicts(self, progress: Progress | None = None) -> list[Judgement | None]:
        """Wait for the verdicts on each set of predictions, in the order of `start`; None without a judge.

        A judge that is unavailable is part of the result, not an exception.
        """
        return [judgement.wait(progress) if judgement is not None else None for judgement in self._judgements]
