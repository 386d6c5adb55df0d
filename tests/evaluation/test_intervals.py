"""Intervals hold the true mean as often as they say, from five examples on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.intervals import Part, interval

CONFIG = EvaluationConfig(bootstrap_samples=200)
SAMPLES = 500


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """The benchmark, which draws the samples."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("shape", ["near normal", "skewed", "coarse", "judge on 5"])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(simulation: ModuleType, shape: str, count: int) -> None:
    [population] = [one for one in simulation.SHAPES if one.name == shape]
    shares = simulation.coverage(population, count, SAMPLES, CONFIG)
    assert 0.93 <= shares.score <= 0.97
    assert shares.gain >= 0.93
    assert shares.claims <= 0.06


def test_a_sample_of_any_size_fits_memory() -> None:
    scores = np.random.default_rng(0).normal(0.7, 0.1, 300_000).clip(0, 1)
    every = np.arange(len(scores))
    low, high = interval(Part(scores, 0, 1), None, every, samples=100, seed=1, paired=False)
    assert low < scores.mean() < high
    assert high - low < 0.002
