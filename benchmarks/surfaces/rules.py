"""Ways of choosing among the trials of a replayed study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from benchmarks.surfaces.surface import Drawn, Floats
from numpy.typing import NDArray
from scipy.special import ndtr

from lorahydra.evaluation.choosing import compare
from lorahydra.evaluation.judging import choose
from lorahydra.evaluation.racing import race

INDIFFERENCE = 0.005
"""`search.indifference`."""


@dataclass
class Replayed:
    """The trials of one study that ended with a score, in their order."""

    numbers: list[int]
    settings: list[tuple[float, float]]
    """Natural logarithm of the rate, as at the grid's scale, and log2 of the rank."""
    trials: list[Drawn]
    scores: Floats
    """On the validation rows, shape (trials, rows)."""
    verdicts: Floats
    """What a judge says of each answer, 0…100, same shape; a study has only some of them."""
    told: list[float]
    """The score of each trial in the study."""
    pruned: list[Drawn]
    asked: int = 0
    """Trials until the study ended."""
    missed: list[float] = field(default_factory=list)
    """The score that each pruned trial would have had in the study."""
    trained: list[float] = field(default_factory=list)
    """Share of its steps that each trial was trained; of those that did not fail."""

    def until(self, number: int) -> Replayed:
        """The study after so many trials."""
        count = sum(done < number for done in self.numbers)
        cut = (part[:count] for part in (self.settings, self.trials, self.scores, self.verdicts, self.told))
        return Replayed(self.numbers[:count], *cut, self.pruned)


@dataclass(frozen=True)
class Judge:
    """A judge by formula.

    A verdict is the quality of an answer, 100 times its score, plus the opinion of the adapter and normal noise,
    cut to 0…100. No surface of a real judge can be made offline.
    """

    noise: float
    """Standard deviation in points."""
    opinion: float = 0.0
    """Standard deviation among adapters of what the judge sees in their answers and the score does not, in points."""
    examples: int = 5
    """Judged in each trial; the ways to choose may judge more."""
    finalists: int = 3
    weight: float = 0.6

    def true(self, trial: Drawn) -> float:
        """The mean combined score of a trial over the population, if verdicts are asked for again and again."""
        middle, spread = 100 * trial.scores + trial.opinion, max(self.noise, 1e-9)
        low, high = -middle / spread, (100 - middle) / spread
        # The mean of a normal variable that is cut to 0…100.
        inside = middle * (ndtr(high) - ndtr(low)) + spread * (_density(low) - _density(high))
        verdicts = inside + 100 * (1 - ndtr(high))
        return float((1 - self.weight) * trial.true + self.weight * verdicts.mean() / 100)

    def order(self, rows: int) -> list[int]:
        """The rows in the order in which they are judged."""
        first = choose(rows, self.examples, 0)
        return [*first, *(row for row in range(rows) if row not in first)]


def _density(values: Floats) -> Floats:
    """Of the standard normal distribution."""
    density: Floats = np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi)
    return density


class Choice(NamedTuple):
    """What a rule chose."""

    place: int
    """Of the trial."""
    judged: NDArray[np.bool_] | None = None
    """The verdicts that were asked for, shape (trials, rows); None without a judge."""


Rule = Callable[[Replayed, "Judge | None"], Choice]


def highest_mean(study: Replayed, judge: Judge | None) -> Choice:
    """The trial with the highest score."""
    return Choice(int(np.argmax(study.told)))


def smallest(study: Replayed, judge: Judge | None) -> Choice:
    """What ships: of the trials that are as good as the best one, the one with the smallest adapter."""
    comparison = compare(study.scores)
    best = int(study.scores.mean(axis=1).argmax())
    if comparison is None:
        return Choice(best)
    ranks = [rank for _, rank in study.settings]
    equal = np.flatnonzero(comparison.in_set & (comparison.differences >= -INDIFFERENCE))
    smaller = [place for place in equal.tolist() if ranks[place] < ranks[best]]
    return Choice(min(smaller, key=lambda place: (ranks[place], -comparison.differences[place]), default=best))


def smoothed(study: Replayed, judge: Judge | None) -> Choice:
    """The trial with the highest mean of a Gaussian process over rate and rank, which knows that neighbours are alike.

    The noise is that of the difference of two trials on the same rows; the length scales, in decades and doublings, and
    the spread are those of a coarse grid that make the scores most likely.
    """
    count, rows = study.scores.shape
    told = np.array(study.told)
    if count < 4:
        return Choice(int(told.argmax()))
    own = study.scores - study.scores.mean(axis=0)
    noise = float(own.var(axis=1, ddof=1).mean()) * count / (count - 1) / rows
    places, centred = np.array(study.settings) / (math.log(10), 1), told - told.mean()
    best, means = -math.inf, told
    for decades, doublings, spread in itertools.product((0.3, 0.6, 1.2), (2.0, 6.0), (0.003, 0.01, 0.03, 0.1)):
        gaps = (places[:, None] - places) / (decades, doublings)
        prior = spread**2 * np.exp(-0.5 * (gaps**2).sum(axis=2))
        total = prior + noise * np.eye(count)
        solved = np.linalg.solve(total, centred)
        likelihood = -0.5 * float(centred @ solved) - 0.5 * float(np.linalg.slogdet(total)[1])
        if likelihood > best:
            best, means = likelihood, prior @ solved
    return Choice(int(means.argmax()))


def finalists(study: Replayed, judge: Judge | None) -> Choice:
    """The best by a few judged examples; the first of them are judged on all examples."""
    assert judge is not None
    last = np.argsort(study.told)[::-1][: judge.finalists]
    judged = study.verdicts < 0
    judged[:, judge.order(judged.shape[1])[: judge.examples]] = True
    judged[last] = True
    combined = (1 - judge.weight) * study.scores.mean(axis=1) + judge.weight * study.verdicts.mean(axis=1) / 100
    return Choice(int(last[combined[last].argmax()]), judged)


def raced(study: Replayed, judge: Judge | None) -> Choice:
    """The race that ships, with as many verdicts as `finalists` needs."""
    assert judge is not None
    count, rows = study.scores.shape
    order = judge.order(rows)
    first = np.full((count, rows), np.nan)
    weighted = judge.weight * study.verdicts / 100
    first[:, order[: judge.examples]] = weighted[:, order[: judge.examples]]

    def ask(trials: Sequence[int], examples: int) -> Floats:
        rows = np.full((len(trials), len(order)), np.nan)
        rows[:, order[:examples]] = weighted[np.ix_(trials, order[:examples])]
        return rows

    outcome = race(
        (1 - judge.weight) * study.scores,
        first,
        ask,
        judged=judge.examples,
        verdicts=min(judge.finalists, count) * (rows - judge.examples),
        indifference=INDIFFERENCE,
    )
    return Choice(outcome.last[0], np.isfinite(outcome.judge))


RULES: dict[str, Rule] = {
    "smallest": smallest,
    "highest mean": highest_mean,
    "smoothed": smoothed,
    "finalists": finalists,
    "race": raced,
}
