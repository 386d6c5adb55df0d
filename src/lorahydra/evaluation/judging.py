"""Which predictions are judged, and what the verdicts say about all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import JudgeCoverageError
from lorahydra.evaluation.predictions import EvaluationSet
from lorahydra.judges import JudgeCase, Judgement, JudgeSession, start_judging
from lorahydra.names import Score
from lorahydra.utils.progress import Progress

__all__ = ["Judging", "Verdicts", "choose"]


T = TypeVar("T")


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


@dataclass(frozen=True)
class Verdicts:
    """What a judge said about the chosen ones of a model's predictions."""

    judgement: Judgement
    """In the order of `chosen`."""
    chosen: list[int]
    """Positions of the judged examples."""
    count: int
    """Number of all examples."""
    config: JudgeConfig
    left_out: frozenset[int] = frozenset()
    """Positions whose verdict does not count, because another model that is compared has none there."""

    @property
    def scores(self) -> list[float | None]:
        """0…100 for every example; None where there is no verdict that counts."""
        scores = self.by_example(self.judgement.scores)
        return [None if position in self.left_out else score for position, score in enumerate(scores)]

    @property
    def score(self) -> float | None:
        """Mean over the examples with a verdict that counts; None when there is none."""
        scores = [score for score in self.scores if score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def judged(self) -> int:
        """Number of examples with a verdict that counts."""
        return sum(score is not None for score in self.scores)

    @property
    def means(self) -> dict[Score, float]:
        """Score and coverage; no score when there is no verdict."""
        means = {Score.JUDGE_COVERAGE: self.judgement.coverage}
        return means if self.score is None else means | {Score.JUDGE_SCORE: self.score}

    def by_example(self, of_chosen: Sequence[T]) -> list[T | None]:
        """What there is for each chosen example, as a list over all of them."""
        values = dict(zip(self.chosen, of_chosen, strict=True))
        return [values.get(position) for position in range(self.count)]

    def check_coverage(self) -> None:
        """Make sure that there are enough verdicts to compare trials by.

        Raises:
            LorahydraError: There are too few; says what ended judging, or names the most frequent fault.
        """
        judgement = self.judgement
        if judgement.coverage >= self.config.min_coverage and self.judged:
            return
        if judgement.error is not None:
            raise judgement.error
        raise JudgeCoverageError(
            f"judge {self.config.name} gave a verdict on {self.judged} of {len(self.chosen)} predictions, fewer than "
            f"judge.min_coverage={self.config.min_coverage} asks for; most often: {judgement.main_fault}"
        )


class Judging:
    """The judge at work on what models predict for the same examples, one set of predictions after another.

    At the end of its block no further call begins.

    Args:
        session: The judge; None without one.
        examples: The prompts and references.
        seed: Draws the examples that are judged.
        n_examples: How many are judged; `judge.n_examples` when left out.
        repeats: Verdicts for each.
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
        self._sets: list[tuple[list[JudgeCase], Judgement | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for _, running in self._sets:
            if running is not None:
                running.stop()

    def start(self, predictions: Sequence[str]) -> None:
        """Begin with a model's predictions for all examples; with `judge.overlap=false`, not before `verdicts`."""
        texts, references = self._examples.texts, self._examples.references
        cases = [JudgeCase(texts[index], references[index], predictions[index]) for index in self._chosen]
        begins = self.session is not None and self.session.config.overlap
        self._sets.append((cases, self._begin(cases) if begins else None))

    def verdicts(self, progress: Progress | None = None) -> list[Verdicts | None]:
        """Wait for the verdicts on each set of predictions, in the order of `start`; None without a judge.

        A judge that cannot be reached is part of the result, not an exception.
        """
        return [self._verdicts(cases, running, progress) for cases, running in self._sets]

    def _verdicts(
        self, cases: list[JudgeCase], running: Judgement | None, progress: Progress | None
    ) -> Verdicts | None:
        if self.session is None:
            return None
        judgement = (running or self._begin(cases)).wait(progress)
        return Verdicts(judgement, self._chosen, len(self._examples.texts), self.session.config)

    def _begin(self, cases: list[JudgeCase]) -> Judgement:
        assert self.session is not None
        return start_judging(self.session, cases, self._repeats)
