"""Chooses which predictions are judged, and hands them to the judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from lorahydra.evaluation.predictions import EvaluationSet
from lorahydra.judges import JudgeCase, Judgement, JudgeSession, start_judging
from lorahydra.utils.progress import Progress

__all__ = ["Judging", "choose"]


def choose(count: int, n_examples: int | str, seed: int) -> list[int]:
    """Positions of the examples to judge (so many, or `all`), ascending; the same for the same seed and count."""
    if n_examples == "all" or int(n_examples) >= count:
        return list(range(count))
    return sorted(np.random.default_rng([seed, count]).permutation(count)[: int(n_examples)].tolist())


class Judging:
    """Judging of several models' predictions for the same examples, one set of predictions after another.

    After the end of its block no further call begins.

    Args:
        session: The judge; None without one.
        examples: The prompts and references.
        seed: Draws the examples that are judged.
        n_examples: How many are judged.
        repeats: Number of verdicts for each.
    """

    def __init__(
        self,
        session: JudgeSession | None,
        examples: EvaluationSet,
        seed: int,
        *,
        n_examples: int | str,
        repeats: int = 1,
    ) -> None:
        self.session = session
        self._examples = examples
        self._repeats = repeats
        count = len(examples.texts)
        self._chosen = choose(count, n_examples, seed) if session is not None else []
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
