"""A race of trials on judged examples: verdicts go to the trials that they can still decide between.

```python
outcome = race(scores, first, ask, judged=5, verdicts=600, indifference=0.005)
outcome.judge  # NaN where no verdict was asked for
```
All trials start with their verdicts on the same few examples. In each round those that are clearly behind the best one
drop out (`lorahydra.evaluation.choosing`), and the others get verdicts on twice as many examples. The verdicts that are
left are shared among the rounds that are left, as in sequential halving (Karnin, Koren & Somekh, 2013): if a round has
too few for all, the trials go on whose true means are probably the highest. Then a few verdicts count for little beside
the scores that every example has. The trials of the last round have as many verdicts each, and the highest mean wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lorahydra.evaluation.choosing import LEVEL, compare
from lorahydra.evaluation.intervals import Floats

__all__ = ["Race", "race"]

Ask = Callable[[Sequence[int], int], Floats | None]
"""Gets verdicts on the first so many examples of the order, for trials named by their positions: weighted scores, shape
(these trials, all examples), NaN without a verdict; None if no more verdicts can be had. A trial whose row has none at
all leaves the race with the verdicts that it had before."""


@dataclass(frozen=True)
class Race:
    """The outcome of a race."""

    judge: Floats
    """Weighted verdicts, shape (trials, examples), NaN where there is none."""
    last: tuple[int, ...]
    """Positions of the trials that were in the last round, the one with the highest mean first."""
    examples: int
    """On how many examples these were judged."""
    verdicts: int
    """How many verdicts were asked for after the first ones."""
    rounds: int
    reason: str
    """Why it ended, as the end of a sentence."""


def race(
    scores: Floats,
    first: Floats,
    ask: Ask,
    *,
    judged: int,
    verdicts: int,
    indifference: float,
    repeats: int = 1,
    samples: int = 1000,
    seed: int = 0,
) -> Race:
    """Ask for verdicts until one trial is left, the rest are equal for all that matters, or there are no more verdicts.

    Args:
        scores: Scores that every example has, weighted, shape (trials, examples). A trial that lacks one (NaN) takes
            no part.
        first: The verdicts that all trials have already, once each; weighted, same shape, NaN elsewhere. A trial
            without any takes no part.
        ask: Gets verdicts.
        judged: Number of examples that the first verdicts are on.
        verdicts: The most that may be asked for.
        indifference: A difference in the sum of mean score and mean verdict that does not matter.
        repeats: Verdicts for each example.
        samples: Resamples of each test.
        seed: Seeds them.

    Returns:
        The outcome; `last` is empty if no trial takes part.
    """
    judge, count = first.copy(), scores.shape[1]
    racing, had, asked, rounds = list(range(len(scores))), judged, 0, 0
    planned = max(1, math.ceil(math.log2(count / max(judged, 1))) + (repeats > 1 and judged == count))
    while True:
        # Each round tests at its share of the error.
        racing, bound = _left(scores, judge, racing, 1 - (1 - LEVEL) / planned, samples, seed)
        more = min(2 * judged, count) if rounds or judged < count else count
        cost = more * repeats - had
        most = _affordable(len(racing), cost, count * repeats - had, verdicts - asked, planned - rounds)
        if not racing:
            reason = "no trial has verdicts"
        elif len(racing) == 1:
            reason = "one trial is left"
        elif bound <= indifference:
            reason = "no difference that matters is left"
        elif cost == 0:
            reason = "all examples are judged"
        elif most < 2:
            reason = "more verdicts would be needed than may be asked for"
        else:
            rows = ask(racing[:most], more)
            if rows is None:
                reason = "no more verdicts can be had"
            else:
                given = np.flatnonzero(np.isfinite(rows).any(axis=1))
                racing = [racing[n] for n in given.tolist()]
                judge[racing] = rows[given]
                judged, had, asked, rounds = more, more * repeats, asked + most * cost, rounds + 1
                continue
        means = _means(scores[racing], judge[racing])
        last = tuple(racing[n] for n in np.argsort(-means, kind="stable").tolist())
        return Race(judge, last, judged, asked, rounds, reason)


def _left(
    scores: Floats, judge: Floats, racing: Sequence[int], level: float, samples: int, seed: int
) -> tuple[list[int], float]:
    """The trials that are not clearly behind, the most promising first, and a bound on their lead over the best one.

    Those that cannot be compared are not clearly behind; they come last.
    """
    means = _means(scores[racing], judge[racing])
    order = [n for n in np.argsort(-means, kind="stable").tolist() if np.isfinite(means[n])]
    best = order[0] if order else None
    comparison = compare(scores[racing], judge[racing], best=best, level=level, samples=samples, seed=seed)
    if comparison is None:  # too few examples to tell
        return [racing[n] for n in order], math.inf
    likely = np.nan_to_num(comparison.expected, nan=-np.inf)
    kept = sorted((n for n in order if comparison.in_set[n] or np.isinf(likely[n])), key=lambda n: -likely[n])
    return [racing[n] for n in kept], comparison.regret_bound


def _means(scores: Floats, judge: Floats) -> Floats:
    """The sum of mean score and mean verdict of each trial; minus infinity if it has none."""
    given = np.isfinite(judge).sum(axis=1)
    means = scores.mean(axis=1) + np.nansum(judge, axis=1) / np.maximum(given, 1)
    usable: Floats = np.where((given > 0) & np.isfinite(means), means, -np.inf)
    return usable


def _affordable(racing: int, cost: int, whole: int, left: int, rounds: int) -> int:
    """How many trials can go on: all if the verdicts last to the end, or else those that a round's share is enough for.

    Args:
        racing: Trials that are left.
        cost: Verdicts for one of them in this round.
        whole: Verdicts for one of them from here to the end.
        left: Verdicts that may be asked for.
        rounds: Rounds that are left, this one included.
    """
    if cost == 0 or racing * whole <= left:
        return racing
    share = left // max(rounds, 1)
    return min(racing, max(2, share // cost), left // cost)
