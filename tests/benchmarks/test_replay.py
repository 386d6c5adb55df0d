"""Replayed studies have the scores of recorded trials, and what is measured in them is right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from benchmarks.replay import calibration_error, measure, replay
from benchmarks.surfaces.make import write
from benchmarks.surfaces.rules import Choice, Judge, Replayed, finalists, highest_mean, raced, smoothed
from benchmarks.surfaces.strategies import STRATEGIES, setting
from benchmarks.surfaces.surface import Drawn, Surface, load, simulated
from optuna.pruners import MedianPruner

from lorahydra.sweep.halving import HalvingPruner
from lorahydra.sweep.stopping import StopRule

ROWS = 40


def trial(rate: float, rank: int, seed: int) -> dict[str, Any]:
    """A line of the file: at rates above 1e-3 training fails, and 3e-4 is the best rate."""
    scores = 0.8 - 0.1 * math.log10(rate / 3e-4) ** 2 + 0.1 * np.random.default_rng([seed, rank]).standard_normal(ROWS)
    fine = {"validation": scores[:10].tolist(), "unseen": scores[10:].tolist(), "loss": [2.0, 1.0], "loss_step": [1, 2]}
    cell = {"learning_rate": rate, "r": rank, "lora_alpha": 2 * rank, "seed": seed}
    return cell | (fine if rate <= 1e-3 else {"failure": "diverged: the loss rose", "loss": [], "loss_step": []})


@pytest.fixture(scope="module")
def surface(tmp_path_factory: pytest.TempPathFactory) -> Surface:
    """A small grid; of the rate 1e-5 one trial is missing."""
    cells = [(rate, rank, seed) for seed in (0, 1) for rate in (3e-5, 3e-4, 1e-3, 3e-3) for rank in (8, 64)]
    path = tmp_path_factory.mktemp("surface") / "tiny.parquet"
    write(
        path,
        [trial(0.0, 0, 0) | {"r": 0} if not rate else trial(rate, r, s) for rate, r, s in [*cells, (1e-5, 8, 0)]],
        {},
    )
    return load(path)


def test_an_incomplete_grid_is_read_as_far_as_it_is_complete(surface: Surface) -> None:
    assert surface.rates.tolist() == [3e-5, 3e-4, 1e-3, 3e-3]
    assert surface.scores.shape == (2, 4, 2, ROWS)
    assert surface.best == pytest.approx(surface.scores[:, 1].mean(axis=(0, 2)).max())


def test_a_trial_has_the_scores_of_neighbouring_cells(surface: Surface) -> None:
    draws = np.random.default_rng(0)
    drawn = surface.draw(3e-4, 8, draws)
    assert drawn is not None
    assert ((drawn.scores == surface.scores[:, 1, 0]).any(axis=0)).all()
    between = surface.draw(1e-4, 16, draws)
    assert between is not None
    low, high = surface.scores[:, :2].min(axis=(0, 1, 2)), surface.scores[:, :2].max(axis=(0, 1, 2))
    assert ((low <= between.scores) & (between.scores <= high)).all()
    assert surface.scores[:, 0].mean() < between.expected < surface.scores[:, 1].mean()


def test_scale_counts_as_rate(surface: Surface) -> None:
    params = {"training.learning_rate": 3e-5, "lora.r": 8, "lora.lora_alpha": 160}
    assert setting(params, surface) == pytest.approx((3e-4, 8))
    ordered = {"training.learning_rate": 3e-5, "lora.r_doublings": 5}
    assert setting(ordered, surface, "rank") == (3e-5, 32)
    assert setting(ordered, surface, "same") == (1.5e-5, 32)


def test_training_fails_where_it_failed(surface: Surface) -> None:
    assert all(surface.draw(3e-3, 8, np.random.default_rng(seed)) is None for seed in range(5))
    assert all(surface.draw(1e-3, 8, np.random.default_rng(seed)) is not None for seed in range(5))


@pytest.mark.parametrize("name", ["default", "random", "before"])
def test_a_study_is_replayed(surface: Surface, name: str) -> None:
    studies = [replay(surface, STRATEGIES[name], 3, trials=6, rows=16) for _ in range(2)]
    assert studies[0].told == studies[1].told
    for rule in (highest_mean, smoothed):
        measured = measure(studies[0], surface, rule, None, 6)
        assert len(measured.regrets) == 6
        assert 0 <= measured.regrets[-1] == surface.best - studies[0].trials[rule(studies[0], None).place].expected
        assert 0 < measured.p_best <= 1


def test_neighbours_correct_a_lucky_score() -> None:
    line = simulated(rows=200)
    means = np.array([0.70, 0.75, 0.70, 0.78, 0.79, 0.78])  # the second is lucky by 0.06
    noise = 0.2 * np.random.default_rng(0).standard_normal((6, 200))
    scores = means[:, None] + noise - noise.mean(axis=1, keepdims=True)
    scores[1] += 0.045
    trials = [Drawn(mean, row, line.losses[0, 0, 0]) for mean, row in zip(means, scores, strict=True)]
    rates = [math.log(10) * place for place in (-4.6, -4.5, -4.4, -3.7, -3.6, -3.5)]
    told = scores.mean(axis=1).tolist()
    study = Replayed(list(range(6)), [(rate, 4.0) for rate in rates], trials, scores, scores, told, [])
    assert highest_mean(study, None).place == 1
    assert smoothed(study, None).place in (3, 4, 5)


def test_a_judge_takes_calls_and_a_pruner_ends_trials() -> None:
    pruner, judge = MedianPruner(4, n_min_trials=3), Judge(15)
    study = replay(simulated(rows=60), STRATEGIES["random"], 0, trials=12, rows=20, pruner=pruner, judge=judge)
    assert len(study.trials) + len(study.pruned) <= 12
    assert study.pruned
    place, judged = finalists(study, Judge(15))
    assert judged is not None
    assert judged.sum() == 5 * len(study.trials) + 3 * 15
    assert place in np.argsort(study.told)[-3:]
    _, judged = raced(study, Judge(15))
    assert judged is not None
    assert 5 * len(study.trials) <= judged.sum() <= 5 * len(study.trials) + 3 * 15


def test_a_judge_has_an_opinion_of_each_adapter() -> None:
    surface, judge = simulated(rows=60), Judge(0.0, opinion=5.0)
    study = replay(surface, STRATEGIES["random"], 0, trials=8, rows=20, judge=judge)
    opinions = [trial.opinion for trial in study.trials]
    assert len(set(opinions)) == len(study.trials)
    for trial, scores, verdicts in zip(study.trials, study.scores, study.verdicts, strict=True):
        inside = (verdicts > 0) & (verdicts < 100)
        assert verdicts[inside] == pytest.approx(100 * scores[inside] + trial.opinion)
    drawn = Drawn(0.5, np.linspace(0, 1, 200), np.zeros(1), opinion=3.0)
    noisy = Judge(15.0)
    verdicts = 100 * drawn.scores + 3 + 15 * np.random.default_rng(0).standard_normal((2000, 200))
    expected = 0.4 * drawn.true + 0.6 * verdicts.clip(0, 100).mean() / 100
    assert noisy.true(drawn) == pytest.approx(expected, abs=0.0005)
    liked = int(np.argmax([judge.true(trial) for trial in study.trials]))
    assert measure(study, surface, lambda *_: Choice(liked), judge, 8).won
    worse = int(np.argmin([judge.true(trial) for trial in study.trials]))
    assert not measure(study, surface, lambda *_: Choice(worse), judge, 8).won


def test_packs_are_halved_at_a_quarter_and_at_half_of_their_training() -> None:
    surface = simulated(rows=60)
    sizes = {"trials": 12, "rows": 20, "pack": 4}
    study = replay(surface, STRATEGIES["random"], 0, **sizes, pruner=HalvingPruner(neighbours=0))
    whole = replay(surface, STRATEGIES["random"], 0, **sizes)
    assert set(whole.trained) == {1.0}
    assert set(study.trained) == {0.25, 0.5, 1.0}
    assert len(study.trained) == len(whole.trained) == len(study.trials) + len(study.pruned)
    assert len(study.missed) == len(study.pruned)
    measured = measure(study, surface, highest_mean, None, 12)
    assert measured.trained == pytest.approx(np.mean(study.trained))
    assert measured.missed == (max(study.missed) > max(study.told))
    most = replay(surface, STRATEGIES["random"], 0, **sizes, pruner=HalvingPruner(neighbours=4))
    assert len(most.pruned) < len(study.pruned)


def test_calibration_error() -> None:
    right = np.array([1.0, 0.0, 1.0, 0.0])
    assert calibration_error(np.full(4, 0.5), right) == 0
    assert calibration_error(np.full(4, 0.9), right) == pytest.approx(0.4)


def test_a_replayed_study_ends_when_it_is_sure() -> None:
    surface, rule = simulated(rows=60), StopRule(1.0)
    study = replay(surface, STRATEGIES["random"], 0, trials=14, rows=20, stop_rule=rule)
    assert 8 <= study.asked < 14
    measured = measure(study, surface, highest_mean, None, 14)
    assert measured.asked == study.asked
    assert len(set(measured.regrets[study.asked - 1 :])) == 1
