"""What a model has forgotten, from losses and checks."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy.stats import binomtest

from lorahydra.evaluation.forgetting import Check, compare_general, general_checks, general_texts

LOSSES = np.random.default_rng(0).normal(3, 0.5, 64)
NOISE = np.random.default_rng(1).normal(0, 0.02, 64)


def test_the_shipped_set() -> None:
    texts, checks = general_texts(), general_checks()
    assert (len(texts), len(checks)) == (64, 32)
    assert len(set(texts)) == 64
    cyrillic = re.compile("[а-я]")
    assert sum(cyrillic.search(text) is not None for text in texts) == 32
    assert all(re.compile(check.pattern) for check in checks)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (Check("", r"\bparis\b", max_words=3), "Paris.", "It is certainly Paris, France"),
        (Check("", r"^\W*HELLO\W*$", exact_case=True), " HELLO! ", "hello"),
        (Check("", r"^\W*да\b"), "Да, белый", "Нет"),
    ],
)
def test_a_rule_grades_an_answer(check: Check, right: str, wrong: str) -> None:
    assert check.passed(right)
    assert not check.passed(wrong)
    assert not check.passed("")


def test_nothing_is_forgotten_without_a_difference() -> None:
    passed = [n % 2 == 0 for n in range(32)]
    same = compare_general((LOSSES.tolist(), (LOSSES + NOISE).tolist()), (passed, passed))
    assert same.sentence.startswith("Forgot nothing measurable: it follows 16 of 32 plain instructions, 16 before")
    assert same.means["checks_tuned"] == same.means["checks_untuned"] == 0.5


def test_a_higher_loss_or_fewer_checks_are_said() -> None:
    passed, fewer = [True] * 32, [n < 10 for n in range(32)]
    worse = compare_general((LOSSES.tolist(), (LOSSES + NOISE + 0.3).tolist()), (passed, passed))
    assert re.match(r"Forgot something: loss on general texts \+0\.\d+, 95 % interval \+0\.2", worse.sentence)
    lost = compare_general((LOSSES.tolist(), (LOSSES + NOISE).tolist()), (passed, fewer))
    said = "Forgot something: it follows 10 of 32 plain instructions, 32 before; loss on general texts "
    assert lost.sentence.startswith(said), "what was forgotten comes first"


def test_a_loss_that_is_shown_as_zero_is_no_claim() -> None:
    passed = [True] * 32
    tiny = compare_general((LOSSES.tolist(), (LOSSES + 0.0003).tolist()), (passed, passed))
    assert tiny.loss.low > 0
    assert tiny.sentence.startswith("Forgot nothing measurable:")
    lower = compare_general((LOSSES.tolist(), (LOSSES - 0.0003).tolist()), (passed, passed))
    assert lower.sentence.endswith("loss on general texts +0.000")


@pytest.mark.parametrize(("lost", "gained"), [(5, 0), (6, 0), (9, 2), (0, 0), (0, 7), (10, 1)])
def test_the_interval_of_the_instructions_agrees_with_mcnemars_exact_test(lost: int, gained: int) -> None:
    before = [True] * lost + [False] * (32 - lost)
    after = [False] * lost + [True] * gained + [False] * (32 - lost - gained)
    checks = compare_general((LOSSES.tolist(), LOSSES.tolist()), (before, after)).checks
    differing = lost + gained
    p_value = binomtest(lost, differing).pvalue if differing else 1.0
    assert (checks.low > 0 or checks.high < 0) == (p_value < 0.05)
    assert checks.mean == (gained - lost) / 32
    assert checks.low <= checks.mean <= checks.high


def test_a_broken_model_has_a_finite_difference() -> None:
    passed = [True] * 32
    broken = compare_general((LOSSES.tolist(), [math.nan, math.inf, *LOSSES[2:].tolist()]), (passed, [False] * 32))
    assert all(map(math.isfinite, broken.means.values()))
