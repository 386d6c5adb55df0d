"""Does a choice among settings that were trained with several seeds say truly how sure it is?

    python benchmarks/seeds.py

Studies of four settings are simulated: means of settings with a standard deviation of 0.01, adapters whose means differ
by their seeds, and 64 examples with noise of their own. For each standard deviation between seeds: how often the stated
bound holds, P(best) of the choice, and how often it is right. `plain` compares the means over seeds as if only the
examples made noise, and `widened` is what ships.
"""

from __future__ import annotations

import argparse

import numpy as np

from lorahydra.evaluation.choosing import compare
from lorahydra.evaluation.seed_noise import allowing_for_few, seed_variance, with_unseen_noise

SETTINGS, EXAMPLES = 4, 64


def study(draws: np.random.Generator, seeds: int, between: float, *, widened: bool) -> tuple[float, ...]:
    """Whether the bound holds, P(best), whether the choice is right, and the bound, in one simulated study."""
    means = 0.01 * draws.standard_normal(SETTINGS)
    adapters = means[:, None] + between * draws.standard_normal((SETTINGS, seeds))
    scores = adapters[:, :, None] + 0.12 * draws.standard_normal(EXAMPLES)
    scores += 0.02 * draws.standard_normal((SETTINGS, 1, EXAMPLES))
    scores += 0.06 * draws.standard_normal(scores.shape)
    variance = allowing_for_few(seed_variance(scores), SETTINGS, seeds) if widened else 0.0
    compared = compare(with_unseen_noise(scores.mean(axis=1), variance / seeds), samples=500)
    assert compared is not None
    behind = means.max() - means[compared.best]
    return (
        float(behind <= compared.regret_bound),
        compared.p_best[compared.best],
        float(behind == 0),
        compared.regret_bound,
    )


def main() -> None:
    """Print a line for each noise between seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2, help="adapters of each setting")
    options = parser.parse_args()
    for between in (0.0, 0.005, 0.01, 0.02):
        for widened in (False, True):
            draws = np.random.default_rng(0)
            studies = [study(draws, options.seeds, between, widened=widened) for _ in range(options.repetitions)]
            holds, stated, right, bound = np.mean(studies, axis=0)
            print(
                f"between seeds {between:.3f}, {'widened' if widened else 'plain':>7}: bound holds {holds:.3f}, "
                f"P(best) {stated:.2f}, right {right:.2f}, bound {bound:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
