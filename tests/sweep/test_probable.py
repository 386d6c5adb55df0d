"""What a search is told of judged trials."""

from __future__ import annotations

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorahydra.sweep.probable import EXAMPLES, probable_values
from lorahydra.sweep.trial_record import ATTRIBUTE

ROWS, JUDGED, TRIALS = 64, 5, 12


def judged_trials(noise: float, seed: int) -> tuple[list[FrozenTrial], np.ndarray]:
    """Trials whose judge sees the same quality as the metric, with noise; and their true means."""
    draws = np.random.default_rng(seed)
    truth = 0.7 + 0.03 * draws.standard_normal(TRIALS)
    metric = truth[:, None] + 0.1 * draws.standard_normal(ROWS) + 0.05 * draws.standard_normal((TRIALS, ROWS))
    verdict = metric + noise * draws.standard_normal((TRIALS, ROWS))
    trials = []
    for number in range(TRIALS):
        judge = [float(0.6 * one) if row < JUDGED else None for row, one in enumerate(verdict[number])]
        facts = {EXAMPLES: {"metrics": (0.4 * metric[number]).tolist(), "judge": judge}}
        value = float(0.4 * metric[number].mean() + 0.6 * verdict[number, :JUDGED].mean())
        trial = create_trial(
            value=value,
            params={"x": 0.5},
            distributions={"x": FloatDistribution(0, 1)},
            user_attrs={ATTRIBUTE: facts},
        )
        trial.number = number
        trials.append(trial)
    return trials, truth


def test_few_noisy_verdicts_do_not_hide_which_trials_are_good() -> None:
    told, seen = [], []
    for seed in range(20):
        trials, truth = judged_trials(0.15, seed)
        probable = probable_values(trials)
        told.append(np.corrcoef(truth, [trial.value or 0 for trial in trials])[0, 1])
        seen.append(np.corrcoef(truth, [probable[number] for number in range(TRIALS)])[0, 1])
    assert np.mean(seen) > 0.9 > np.mean(told) + 0.2


def test_the_mean_stays_that_of_the_scores() -> None:
    trials, _ = judged_trials(0.15, 0)
    values = [trial.value or 0 for trial in trials]
    assert np.isclose(np.mean(list(probable_values(trials).values())), np.mean(values))


def test_values_are_all_that_is_known_where_trials_lack_scores_of_examples() -> None:
    trials, _ = judged_trials(0.15, 0)
    assert probable_values(trials[:1]) == {}
    trials[3].user_attrs[ATTRIBUTE] = {}
    assert probable_values(trials) == {}
    trials[3].state = TrialState.RUNNING
    assert set(probable_values(trials)) == set(range(TRIALS)) - {3}
