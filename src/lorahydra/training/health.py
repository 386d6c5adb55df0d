"""Judges the losses of a training: whether it has gone wrong, and which validation was the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lorahydra.errors import TrainingError

__all__ = ["BestValidation", "HealthCheck"]

logger = logging.getLogger(__name__)

SHORTEST_CURVE = 3
"""Least number of validations: of fewer, the best is always the first or the last."""


class HealthCheck:
    """Ends a training whose loss is not a number or diverges.

    Args:
        divergence_factor: A training has diverged when the mean loss of the last `WINDOW` logged steps exceeds the mean
            of the first `WINDOW` by this factor.
    """

    WINDOW = 5

    def __init__(self, divergence_factor: float) -> None:
        self._factor = divergence_factor
        self.losses: list[float] = []
        """The losses of the logged steps."""

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Judge what was logged at a step.

        Args:
            step: The optimiser step.
            values: Any of `loss`, `grad_norm` and `eval_loss`.

        Raises:
            TrainingError: With reason `nan` or `diverged`.
        """
        for key in ("loss", "grad_norm", "eval_loss"):
            if key in values and not math.isfinite(values[key]):
                raise TrainingError(
                    f"training stopped at step {step}: {key} is {values[key]}; try a lower training.learning_rate",
                    reason="nan",
                )
        if "loss" not in values:
            return
        self.losses.append(values["loss"])
        if len(self.losses) < 2 * self.WINDOW:
            return
        first, last = (sum(part) / self.WINDOW for part in (self.losses[: self.WINDOW], self.losses[-self.WINDOW :]))
        if last > self._factor * first:
            raise TrainingError(
                f"training diverged at step {step}: the loss rose from {first:.3f} to {last:.3f}; try a lower "
                "training.learning_rate",
                reason="diverged",
            )


@dataclass
class BestValidation:
    """The lowest validation loss so far."""

    loss: float = math.inf
    step: int = 0
    weights: Tensor | None = None
    """The adapter's weights at that step, if the best adapter is to be kept."""
    validations: int = 0
    """How many there were."""
    since: int = 0
    """How many came after the best."""

    def update(self, step: int, loss: float, weights: Tensor | None) -> None:
        """Take one validation into account."""
        self.validations += 1
        self.since += 1
        if loss < self.loss:
            self.loss, self.step, self.since = loss, step, 0
            self.weights = None if weights is None else weights.clone()

    def warn(self, folder: Path) -> None:
        """Warn if the lowest loss is at an end of the curve."""
        if self.validations < SHORTEST_CURVE or 0 < self.since < self.validations - 1:
            return
        which, advice = (
            ("last", "more epochs may lower it")
            if self.since == 0
            else ("first", "fewer epochs or a lower training.learning_rate may do")
        )
        logger.warning(
            "%s: of %d validations the %s, at step %d, has the lowest loss: %s",
            *(folder, self.validations, which, self.step, advice),
        )
