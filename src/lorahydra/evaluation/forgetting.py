"""What a model has forgotten by tuning: its loss on general texts, and how many plain instructions it follows.

The shipped texts and instructions (`lorahydra/data/general`) have nothing to do with what the model was tuned to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorahydra.evaluation.intervals import Part, interval
from lorahydra.evaluation.scoring import Interval
from lorahydra.names import ends_of, is_forgotten

__all__ = ["Check", "Forgetting", "compare_general", "general_checks", "general_texts"]

FOLDER = Path(__file__).parents[1] / "data" / "general"
TAIL = 0.025
"""Probability beyond each end of an interval of 95 %."""
MOST_LOSS = 20.0
"""Nats per token beyond which a difference of losses counts no more; the loss of guessing is about 11."""


@dataclass(frozen=True)
class Check:
    """An instruction whose answer a rule can grade."""

    prompt: str
    pattern: str
    """What must be found in the answer."""
    max_words: int | None = None
    exact_case: bool = False

    def passed(self, answer: str) -> bool:
        """Whether an answer follows the instruction."""
        text = answer.strip()
        if self.max_words is not None and len(text.split()) > self.max_words:
            return False
        return re.search(self.pattern, text, 0 if self.exact_case else re.IGNORECASE) is not None


def general_texts() -> list[str]:
    """The shipped texts, half of them English and half Russian."""
    return (FOLDER / "texts.txt").read_text("utf-8").splitlines()


def general_checks() -> list[Check]:
    """The shipped instructions, half of them English and half Russian."""
    return [Check(**json.loads(line)) for line in (FOLDER / "checks.jsonl").read_text("utf-8").splitlines()]


@dataclass(frozen=True)
class Forgetting:
    """The tuned model beside the untuned one on what neither was asked to learn."""

    loss: Interval
    """How much higher the tuned model's loss is, in nats per token."""
    checks: Interval
    """How much larger its share of instructions followed is; below 0 if it follows fewer."""
    before: int
    """Instructions that the untuned model follows."""
    after: int
    """Instructions that the tuned model follows."""
    count: int
    """All instructions."""

    @property
    def means(self) -> Mapping[str, float]:
        """Its numbers by the name that they have behind the prefix `forgetting`."""
        ends = {"loss": self.loss, "checks": self.checks}
        means = {name: one.mean for name, one in ends.items()}
        for name, one in ends.items():
            low, high = ends_of(name)
            means |= {low: one.low, high: one.high}
        counts = {"checks_untuned": self.before / self.count, "checks_tuned": self.after / self.count}
        return {**means, **counts, "count": float(self.count)}

    @property
    def sentence(self) -> str:
        """What was forgotten, in one sentence without a full stop."""
        checks = f"it follows {self.after} of {self.count} plain instructions, {self.before} before"
        loss = f"loss on general texts {self.loss.mean:+z.3f}"
        if not is_forgotten(self.loss.low, self.checks.high):
            return f"Forgot nothing measurable: {checks}; {loss}"
        if not is_forgotten(self.loss.low, 0.0):
            return f"Forgot something: {checks}; {loss}"
        return f"Forgot something: {loss}, 95 % interval {self.loss.low:+.3f} to {self.loss.high:+.3f}; {checks}"


def compare_general(
    losses: tuple[Sequence[float], Sequence[float]], passed: tuple[Sequence[bool], Sequence[bool]]
) -> Forgetting:
    """Compare the untuned with the tuned model.

    Args:
        losses: Mean loss of each text, of the untuned and of the tuned model, in nats per token.
        passed: Which instructions each follows.
    """
    difference = np.nan_to_num(np.subtract(losses[1], losses[0]), nan=MOST_LOSS, posinf=MOST_LOSS)
    difference = difference.clip(-MOST_LOSS, MOST_LOSS)
    part = Part(difference, -MOST_LOSS, MOST_LOSS)
    ends = interval(part, None, np.arange(len(difference)), samples=1000, seed=0, paired=True)
    return Forgetting(
        loss=Interval(float(difference.mean()), *ends),
        checks=_difference_of_shares(*passed),
        before=sum(passed[0]),
        after=sum(passed[1]),
        count=len(passed[0]),
    )


def _difference_of_shares(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """How much larger the share of instructions followed is, with the interval that belongs to McNemar's exact test.

    Of the instructions that only one of the models follows, the share of the tuned model's has the interval of Clopper
    and Pearson (1934). A bootstrap is too narrow for a few of them: it would call four lost ones a certain loss.
    """
    from scipy.stats import beta

    gained = sum(now and not then for then, now in zip(before, after, strict=True))
    lost = sum(then and not now for then, now in zip(before, after, strict=True))
    differing = gained + lost
    low = float(beta.ppf(TAIL, gained, lost + 1)) if gained else 0.0
    high = float(beta.ppf(1 - TAIL, gained + 1, lost)) if lost else 1.0
    scale = differing / len(before)
    return Interval((gained - lost) / len(before), (2 * low - 1) * scale, (2 * high - 1) * scale)
