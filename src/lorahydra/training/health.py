"""Notices a training whose loss is not a number or diverges."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lorahydra.errors import TrainingError

__all__ = ["Health"]


class Health:
    """Ends a training that has gone wrong.

    Args:
        divergence_factor: Diverged means that the mean loss of the last `WINDOW` logged steps exceeds the mean of the
            first `WINDOW` by this factor.
    """

    WINDOW = 5

    def __init__(self, divergence_factor: float) -> None:
        self._factor = divergence_factor
        self.losses: list[float] = []
        """Of the logged steps."""

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
        if "loss" in values:
            self.losses.append(values["loss"])
            self._check_divergence(step)

    def _check_divergence(self, step: int) -> None:
        if len(self.losses) < 2 * self.WINDOW:
            return
        first = sum(self.losses[: self.WINDOW]) / self.WINDOW
        last = sum(self.losses[-self.WINDOW :]) / self.WINDOW
        if last > self._factor * first:
            raise TrainingError(
                f"training diverged at step {step}: the loss rose from {first:.3f} to {last:.3f}; try a lower "
                "training.learning_rate",
                reason="diverged",
            )
