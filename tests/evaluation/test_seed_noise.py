"""The noise that the seeds of trainings add to scores."""

from __future__ import annotations

import numpy as np
import pytest

from lorahydra.evaluation.choosing import compare
from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.seed_noise import allowing_for_few, seed_variance, with_unseen_noise


def adapters(seed_noise: float, *, settings: int = 4, seeds: int = 3, examples: int = 64, seed: int = 0) -> Floats:
    """Scores of adapters, shape (settings, seeds, examples)."""
    draws = np.random.default_rng(seed)
    scores = 0.7 + 0.12 * draws.standard_normal(examples) + 0.06 * draws.standard_normal((settings, seeds, examples))
    scores += 0.02 * draws.standard_normal((settings, 1, 1))  # settings differ
    return scores + seed_noise * draws.standard_normal((settings, seeds, 1))


@pytest.mark.parametrize("seed_noise", [0.0, 0.02, 0.05])
def test_what_a_seed_adds_everywhere_is_told_from_noise_on_examples(seed_noise: float) -> None:
    found = [seed_variance(adapters(seed_noise, seed=seed)) for seed in range(60)]
    assert np.sqrt(np.mean(found)) == pytest.approx(seed_noise, abs=0.006)
    assert min(found) >= 0


def test_verdicts_count_where_all_adapters_of_a_setting_have_them() -> None:
    found = []
    for seed in range(60):
        judge = 0.5 * adapters(0.04, seed=seed)
        judge[:, :, 20:] = np.nan
        judge[0, 1, 3] = np.nan
        found.append(seed_variance(np.zeros_like(judge), judge))
    assert np.sqrt(np.mean(found)) == pytest.approx(0.02, abs=0.005)


def test_few_adapters_are_allowed_for() -> None:
    assert allowing_for_few(1.0, 4, 2) == pytest.approx((2.776 / 1.960) ** 2, abs=0.01)
    assert allowing_for_few(1.0, 4, 200) == pytest.approx(1, abs=0.01)


def test_scores_show_the_noise_that_examples_do_not_have() -> None:
    scores = adapters(0.0).mean(axis=1)
    noisy = with_unseen_noise(scores, 0.01**2)
    assert noisy.mean(axis=1) == pytest.approx(scores.mean(axis=1))
    added = noisy - scores
    assert added @ added.T / 64 == pytest.approx(np.eye(4) * 64 * 0.01**2, abs=1e-12)
    assert (with_unseen_noise(scores, 0.0) == scores).all()
    plain, wide = compare(scores), compare(noisy)
    assert plain is not None
    assert wide is not None
    assert wide.regret_bound > plain.regret_bound
    assert wide.p_best[wide.best] < plain.p_best[plain.best]
