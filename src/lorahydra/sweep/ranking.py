"""The order of a study's trials.

Directions are `maximize` or `minimize`, in the order of `TrialRecord.values`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna

from lorahydra.names import State
from lorahydra.sweep.trial_record import TrialRecord

__all__ = ["best_so_far", "directions_of", "pareto_front", "ranked"]

SIGNS = {"maximize": -1.0, "minimize": 1.0}
STATES = (State.COMPLETE, State.PRUNED, State.FAILED, State.RUNNING, State.INTERRUPTED)


def directions_of(study: optuna.Study) -> list[str]:
    """`minimize` or `maximize` per objective."""
    return [direction.name.lower() for direction in study.directions]


def best_so_far(records: Sequence[TrialRecord], directions: Sequence[str]) -> TrialRecord | None:
    """The complete trial that may win with the best first objective; of equal trials, the earlier one.

    If none may win, it is the one that forgot least.
    """
    complete = [record for record in records if record.values]
    allowed = [record for record in complete if record.excluded is None]
    if complete and not allowed:
        return min(complete, key=lambda record: (record.forgetting or 0.0, record.number))
    complete = allowed
    values = {record.number: SIGNS[directions[0]] * (record.values or (0,))[0] for record in complete}
    return min(complete, key=lambda record: (values[record.number], record.number), default=None)


def ranked(records: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """All trials: complete ones best first, then pruned by their last loss, failed, running and interrupted ones.

    They are in the order of what decides: the winner, then the trials that were left at the end of a race by their
    scores after it, then the others, and those that could not win at the end.

    With several objectives the Pareto front comes first; it and the rest are ordered by the first objective. Trials
    that are equal are ordered by number, and a NaN is worse than any number.
    """
    front = {record.number for record in pareto_front(records, directions)}

    def place(record: TrialRecord) -> tuple[int, bool, bool, bool, bool, bool, float, int]:
        loss = math.nan
        if record.final is not None:
            loss = -record.final.combined
        elif record.state is State.COMPLETE:
            loss = (_losses(record, directions) or (loss,))[0]
        elif record.state is State.PRUNED and record.loss is not None:
            loss = record.loss
        # Infinity is a number, and better than no number at all.
        missing = math.isnan(loss)
        decided = not record.is_winner, record.excluded is not None, record.final is None, record.number not in front
        return STATES.index(record.state), *decided, missing, 0 if missing else loss, record.number

    return sorted(records, key=place)


def pareto_front(records: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """Complete trials that no other beats in one objective without being worse in another, by the first objective.

    With one objective these are the best trial and those equal to it. Trials that cannot win are left out.
    """
    points = [
        (losses, record)
        for record in records
        if record.state is State.COMPLETE
        and record.excluded is None
        and (losses := _losses(record, directions)) is not None
    ]
    front = [(losses, record) for losses, record in points if not any(_dominates(other, losses) for other, _ in points)]
    return [record for _, record in sorted(front, key=lambda point: (point[0][0], point[1].number))]


def _losses(record: TrialRecord, directions: Sequence[str]) -> tuple[float, ...] | None:
    """Values with signs such that less is better, or None if they cannot be compared."""
    if record.values is None or len(record.values) != len(directions) or any(map(math.isnan, record.values)):
        return None
    return tuple(SIGNS[direction] * value for direction, value in zip(directions, record.values, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
