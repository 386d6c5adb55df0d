"""Two fine-tunes side by side."""

from __future__ import annotations

from dataclasses import dataclass

from lorahydra.service.views.base import Documented
from lorahydra.service.views.fine_tunes import JobView

__all__ = ["ComparisonView", "DifferenceView"]


@dataclass(frozen=True)
class DifferenceView(Documented):
    """A setting that differs."""

    key: str
    """`base_model_name`, `judge_model_id`, `n_trials`, `dataset`, or a config key such as `lora.r`."""
    first: str | None
    second: str | None
    """None where one of both does not have it."""
    is_searched: bool = False
    """Whether these are the winners' values of a searched hyperparameter."""


@dataclass(frozen=True)
class ComparisonView(Documented):
    """Two fine-tunes, what differs, and whether the second one's winner is better."""

    first: JobView
    second: JobView
    differences: list[DifferenceView]
    obstacle: str | None
    """Why their scores cannot be compared: `not_complete`, `no_test_rows`, `other_test_rows` (they were not tested on
    the same rows), `other_scoring` (by another judge or metric) or `no_common_verdicts`; None if they can be."""
    gain: float | None
    """The second one's `combined` less the first one's, as a mean over the test rows; None if there is an obstacle."""
    gain_low: float | None
    gain_high: float | None
    """Ends of the 95 % interval of `gain`, from a paired bootstrap."""
    examples: int | None
    """Test rows behind it; with a judge, those with a verdict on both models' predictions."""
    verdict: str | None
    """`higher` (the second one scores higher), `lower`, `no_clear_difference` (the interval includes 0) or
    `too_few_examples`; None if there is an obstacle."""
