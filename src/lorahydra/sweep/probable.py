"""What the scores of judged trials probably are, for a search that must not follow the noise of a few verdicts.

A trial is judged on a few examples, and a verdict is noisy. What the metrics say of all examples, and what follows from
it for the verdicts, is known much better. So a model that searches is told the expected score, given both
(`lorahydra.evaluation.posterior`). The score that people see stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from lorahydra.evaluation.posterior import posterior
from lorahydra.sweep.trial_record import trial_facts

__all__ = ["EXAMPLES", "probable_values"]

EXAMPLES = "examples"
"""Fact of a trial: what metrics and verdicts contribute to its score on each example."""


def probable_values(trials: Sequence[FrozenTrial]) -> dict[int, float]:
    """The expected `combined` of each complete trial, by number.

    Returns:
        Nothing unless all of them have scores on the same number of examples: then their values are all that is known.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    kept = [trial_facts(trial).get(EXAMPLES) for trial in complete]
    if len(kept) < 2 or not all(kept) or any(len(trial.values) > 1 for trial in complete):
        return {}
    metrics = [each["metrics"] for each in kept if each]
    if len({len(scores) for scores in metrics}) > 1:
        return {}
    judge = np.array([each["judge"] for each in kept if each], dtype=np.float64)
    _, expected = posterior(np.array(metrics), judge, 1, np.random.default_rng(0))
    mean = float(np.mean([trial.value for trial in complete]))
    return {trial.number: mean + float(value) for trial, value in zip(complete, expected, strict=True)}
