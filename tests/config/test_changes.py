"""What may change between results that are compared."""

from __future__ import annotations

import pytest
from tests.support.configs import composed

from lorahydra.config.changes import (
    PATHS,
    REJUDGING_NEUTRAL_KEYS,
    REPRODUCTION_NEUTRAL_KEYS,
    SCORE_NEUTRAL_KEYS,
    differing,
    may_change,
)
from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig


def test_every_name_is_a_key_or_a_group() -> None:
    keys = flatten(ExperimentConfig())
    for name in (*SCORE_NEUTRAL_KEYS, *REJUDGING_NEUTRAL_KEYS, *PATHS, *REPRODUCTION_NEUTRAL_KEYS):
        assert name in keys or (name.endswith(".") and any(key.startswith(name) for key in keys)), name


@pytest.mark.parametrize(
    "change", ["judge.timeout=5", "tracking.retry_seconds=1", "evaluation.batch_size=2", "study=x"]
)
def test_what_may_change_is_no_difference(change: str) -> None:
    assert differing(composed(), composed(change), SCORE_NEUTRAL_KEYS) == []


def test_what_decides_a_score_is_a_difference() -> None:
    changes = ["lora.r=8", "evaluation.max_new_tokens=5", "judge.min_coverage=0.5", "+judge.options.x=1", "seed=1"]
    keys = ["lora.r", "judge.options", "judge.options.x", "judge.min_coverage", "evaluation.max_new_tokens", "seed"]
    assert set(differing(composed(), composed(*changes), SCORE_NEUTRAL_KEYS)) == set(keys)
    assert not may_change("judge.min_coverage", SCORE_NEUTRAL_KEYS)
    assert may_change("judge.min_coverage", REJUDGING_NEUTRAL_KEYS)
