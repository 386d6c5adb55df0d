"""Halving: of the trials of a pack that are behind at 1/4 and at 1/2 of their schedules, about half are ended.

All trials of a pack are at the same step of equally long schedules, so their validation losses are compared at once.
Early losses say less about high learning rates, whose losses fall late in a decaying schedule, than about low ones. So
the trials with the next higher rates than the leader's stay.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from optuna import Study
from optuna.pruners import BasePruner, MedianPruner
from optuna.trial import FrozenTrial

__all__ = ["AutoPruner", "Contender", "HalvingPruner", "halving_of", "mark_begun"]

PRUNER = "lorahydra.pruner"
"""User attribute of a study: what `pruner=auto` does with packs. Studies of earlier versions, without it, keep the
median."""
HALVING = "halving"

SURE = 2.0
"""Standard errors by which a trial that is ended is behind the leader."""
FEWEST_PARTS = 4
"""Of the validation rows; fewer do not tell how large the noise is."""


@dataclass(frozen=True)
class Contender:
    """A trial of a pack at one point of its schedule."""

    rate: float
    """Learning rate times the scaling of the update, which work alike."""
    loss: float
    """Mean validation loss per token, finite."""
    parts: Sequence[float] = ()
    """The sums of the loss over parts of the validation rows, the same parts for all."""


def mark_begun(study: Study) -> None:
    """Record in a new study how its packs are pruned by default."""
    study.set_user_attr(PRUNER, HALVING)


def halving_of(study: Study) -> HalvingPruner | None:
    """The pruner, if the trials of a pack are compared in this study; Optuna prunes studies of one objective."""
    pruner = study.pruner
    if not isinstance(pruner, HalvingPruner) or len(study.directions) > 1:
        return None
    keeps_median = isinstance(pruner, AutoPruner) and study.user_attrs.get(PRUNER) != HALVING
    return None if keeps_median else pruner


class HalvingPruner(BasePruner):
    """Ends trials that are trained in packs; trials that are trained alone run to their end.

    Args:
        fractions: Where in a schedule trials are compared, above 0 and below 1.
        neighbours: How many trials with the next higher learning rates than the leader's stay.

    Raises:
        ValueError: A fraction or the number of neighbours is out of its range.
    """

    def __init__(self, fractions: Sequence[float] = (0.25, 0.5), neighbours: int = 2) -> None:
        if not all(0 < fraction < 1 for fraction in fractions):
            raise ValueError(f"fractions={list(fractions)} is not allowed: each must be above 0 and below 1")
        if neighbours < 0:
            raise ValueError(f"neighbours={neighbours} is not allowed: it must be at least 0")
        self.fractions = tuple(fractions)
        self._neighbours = neighbours

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial that is trained alone ends at its last measurement."""
        return False

    def behind(self, contenders: Sequence[Contender], tokens: Sequence[int] = ()) -> list[int]:
        """Which trials end here.

        Args:
            contenders: The trials of a pack at the same point of their schedules.
            tokens: Labelled tokens of each part of the validation rows, if the contenders have `parts`.

        Returns:
            Their places: the worse half, without the neighbours of the leader and those that may be as good.
        """
        order = sorted(range(len(contenders)), key=lambda place: contenders[place].loss)
        leader = contenders[order[0]]
        above = [place for place in order[1:] if contenders[place].rate >= leader.rate]
        stay = sorted(above, key=lambda place: contenders[place].rate)[: self._neighbours]
        worse = order[math.ceil(len(order) / 2) :]
        return [place for place in worse if place not in stay and _is_behind(contenders[place], leader, tokens)]


class AutoPruner(HalvingPruner):
    """Halving for trials that are trained in packs, the median for those that are trained alone."""

    def __init__(self, fractions: Sequence[float] = (0.25, 0.5), neighbours: int = 2) -> None:
        super().__init__(fractions, neighbours)
        self.alone = MedianPruner(n_startup_trials=4, n_min_trials=3)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial that is trained alone ends at its last measurement."""
        return bool(self.alone.prune(study, trial))


def _is_behind(trial: Contender, leader: Contender, tokens: Sequence[int]) -> bool:
    """Whether the difference is larger than the noise of the validation rows, as far as that is known.

    The standard error is that of a ratio of sums, here of paired differences of losses and tokens.
    """
    parts = len(tokens)
    if parts < FEWEST_PARTS:
        return trial.loss > leader.loss
    mean = trial.loss - leader.loss
    differences = [one - other for one, other in zip(trial.parts, leader.parts, strict=True)]
    rests = [difference - mean * count for difference, count in zip(differences, tokens, strict=True)]
    error = statistics.stdev(rests) * math.sqrt(parts) / sum(tokens)
    return mean > SURE * error
