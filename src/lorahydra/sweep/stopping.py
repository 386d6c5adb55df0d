"""Ends a study before its last trial when the next one is unlikely to change the choice (`search.stop_when_sure`).

The decision is kept in the study, so that all its processes, and one that resumes it, know that it has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from lorahydra.sweep.auto_sampler import as_numbers, comparable
from lorahydra.sweep.ranking import directions_of
from lorahydra.sweep.search_space import share
from lorahydra.sweep.surrogate import expected_gain
from lorahydra.sweep.trial_record import counted, trial_records

__all__ = ["ENDED", "StopRule", "ended_early", "gain_of_next_trial", "go_on"]

logger = logging.getLogger("lorahydra.sweep")

ENDED = "lorahydra.ended_early"
"""User attribute of a study: when and why it ended early, and whether it is still so."""
UNUSED = "lorahydra.stop_when_sure_unused"
"""User attribute of a study: the parameters because of which it was said that it does not end early."""
SHARE = 0.5
"""The share of `search.indifference` that another trial must be expected to gain, chosen by replayed studies."""
EQUAL = 1e-4
"""Scores that differ by less than this do not tell how they depend on the settings."""
LARGEST_FIT = 50
"""Trials that the model learns from: the best ones."""
FEWEST = 8
"""Complete trials before the model is asked, and after somebody has asked for more trials."""


@dataclass(frozen=True)
class StopRule:
    """When a study ends early."""

    indifference: float
    """A difference that does not matter, in the objective's unit."""
    seed: int = 0

    def ends(self, study: optuna.Study, n_trials: int) -> bool:
        """Whether the study has ended early, or ends now; called under the study's lock."""
        if ended_early(study.user_attrs) is not None:
            return True
        records = trial_records(study)
        complete = sum(record.values is not None for record in records)
        if complete < study.user_attrs.get(ENDED, {}).get("complete", 0) + FEWEST:
            return False
        expected = gain_of_next_trial(study, self.seed)
        if expected is None:
            outside = _outside_of_the_common(_searched(study))
            if outside and study.user_attrs.get(UNUSED) != outside:
                study.set_user_attr(UNUSED, outside)  # so that one process says it, once
                logger.warning("search.stop_when_sure is not used: not all trials search %s", ", ".join(outside))
            return False
        gain, best = expected
        if gain >= SHARE * self.indifference:
            return False
        facts = {
            "finished": sum(record.counts for record in records),
            "complete": complete,
            "of": n_trials,
            "reason": (
                f"another trial is expected to gain {gain:.4f} over trial {best}, less than half of the "
                f"difference that does not matter ({self.indifference:g})"
            ),
        }
        study.set_user_attr(ENDED, {**facts, "ended": True})
        logger.info("The study ends after %d of %d trials: %s", facts["finished"], n_trials, facts["reason"])
        return True


def ended_early(attributes: Mapping[str, Any]) -> str | None:
    """When and why a study ended before its last trial, as the end of a sentence; None if it did not.

    Args:
        attributes: The study's user attributes.
    """
    facts = attributes.get(ENDED, {})
    return f"after {facts['finished']} of {facts['of']} trials: {facts['reason']}" if facts.get("ended") else None


def go_on(study: optuna.Study, n_trials: int, rule: StopRule | None) -> None:
    """Let a study that ended early go on, if more trials are wanted now than then, or if there is no rule any more."""
    facts = study.user_attrs.get(ENDED, {})
    if facts.get("ended") and (rule is None or n_trials > facts["of"]):
        study.set_user_attr(ENDED, {**facts, "ended": False})


def gain_of_next_trial(study: optuna.Study, seed: int) -> tuple[float, int] | None:
    """How much better than the best trial the most promising setting is expected to be, in the objective's unit.

    The best trial, whose number is returned as well, is the one that is probably the best (`sweep.probable`). Failed
    trials count as the worst ones, and pruned ones as middling, as for `sampler=auto`.

    Returns:
        None if nothing is known: without a result or a parameter that all trials have, if some have searched others in
        addition, with equal scores, or with several objectives.
    """
    trials = _searched(study)
    space = _common(trials)
    complete = {trial.number for trial in trials if trial.state is TrialState.COMPLETE}
    if len(study.directions) > 1 or not space or not complete or _outside_of_the_common(trials):
        return None
    numbers = as_numbers(space)
    seen = [trial for trial in comparable(study, trials, space, numbers) if trial.value is not None]
    sign = 1 if directions_of(study) == ["maximize"] else -1
    # A pruned trial may count as much as a complete one, and is then not the one to be named.
    seen = sorted(seen, key=lambda trial: (-sign * (trial.value or 0), trial.number not in complete))[:LARGEST_FIT]
    scores = sign * np.array([trial.value for trial in seen], dtype=np.float64)
    if np.ptp(scores) < EQUAL:
        return None  # all of them may be where nothing is learnt
    points = np.array([[share(kind, trial.params[name]) for name, kind in numbers.items()] for trial in seen])
    words = np.array([isinstance(kind, CategoricalDistribution) for kind in numbers.values()])
    return expected_gain(points, scores, words=words, chosen=0, seed=seed), seen[0].number


def _searched(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a model learns from. A trial that failed may have done so before all of it was drawn."""
    trials = [trial for trial in counted(study.get_trials(deepcopy=False)) if trial.params]
    space = _common([trial for trial in trials if trial.state is not TrialState.FAIL])
    return [trial for trial in trials if trial.state is not TrialState.FAIL or space.keys() <= trial.params.keys()]


def _common(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The parameters that were searched in the same range in each of the trials."""
    if not trials:
        return {}
    first, *others = (trial.distributions for trial in trials)
    return {
        name: kind
        for name, kind in first.items()
        if not kind.single() and all(other.get(name) == kind for other in others)
    }


def _outside_of_the_common(trials: Sequence[FrozenTrial]) -> list[str]:
    """Parameters that were searched in some of the trials only, or in different ranges: a model does not see them."""
    space = _common(trials)
    searched = {name for trial in trials for name, kind in trial.distributions.items() if not kind.single()}
    return sorted(searched - space.keys())
