"""What a training minimises: the mean loss of labelled tokens, or that of pairs of answers (DPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lorahydra.config.schema import TrainingConfig
from lorahydra.modeling.devices import moved
from lorahydra.names import EVAL, Score, scored
from lorahydra.training.batches import Batch
from lorahydra.training.loss import IGNORED, CompletionLoss, labelled_places

__all__ = ["Objective", "Preferences", "Supervised", "log_probabilities", "objective_of"]


class Objective(Protocol):
    """A loss that follows from those of the labelled tokens of a batch."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the other figures, which are only measured on the validation split."""

    def items(self, batch: Batch) -> int:
        """What the mean loss is over: labelled tokens, or pairs."""

    def sums(self, losses: Tensor, batch: Batch) -> Tensor:
        """The loss, and then each of the other figures, summed over the items of a batch.

        Args:
            losses: Of the labelled tokens, from `CompletionLoss.each`, shape `(slots, labelled tokens)`.
            batch: The batch.

        Returns:
            Shape `(1 + other figures, slots)`.
        """


def objective_of(settings: Sequence[TrainingConfig], loss: CompletionLoss, device: torch.device) -> Objective:
    """The objective of adapters that are trained side by side; their method is the same."""
    return Preferences(settings, device) if settings[0].method == "dpo" else Supervised(loss)


class Supervised:
    """The cross-entropy of the answers."""

    metrics = ()

    def __init__(self, loss: CompletionLoss) -> None:
        self._loss = loss

    def items(self, batch: Batch) -> int:
        """Labelled tokens."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def sums(self, losses: Tensor, batch: Batch) -> Tensor:
        """Shape `(1, slots)`."""
        return self._loss.total(losses).unsqueeze(0)


class Preferences:
    """DPO: a logistic regression of which answer is preferred (equation 7 of arXiv 2305.18290).

    The reward of an answer is `beta` times the logarithm of how much more probable it is than for the reference. With
    label smoothing, some pairs are assumed to be in the wrong order (`cDPO`, equation 3 of arXiv 2403.00409).

    Args:
        settings: Of each adapter.
        device: The base model's.
    """

    metrics = (scored(EVAL, Score.REWARD_ACCURACY), scored(EVAL, Score.REWARD_MARGIN))

    def __init__(self, settings: Sequence[TrainingConfig], device: torch.device) -> None:
        self._beta = torch.tensor([[each.dpo_beta] for each in settings], device=device)
        self._smoothing = torch.tensor([[each.dpo_label_smoothing] for each in settings], device=device)

    def items(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["labels"]) // 2

    def sums(self, losses: Tensor, batch: Batch) -> Tensor:
        """Shape `(3, slots)`: the loss, pairs whose chosen answer has the higher reward, and by how much."""
        ratios = log_probabilities(losses, batch["labels"]) - moved(batch["reference"], losses.device)
        chosen, rejected = ratios.chunk(2, dim=1)
        margins = self._beta * (chosen - rejected)
        wrong = self._smoothing * functional.logsigmoid(-margins)
        each = -(1 - self._smoothing) * functional.logsigmoid(margins) - wrong
        return torch.stack([each.sum(dim=1), (margins > 0).sum(dim=1).to(each.dtype), margins.sum(dim=1)])


def log_probabilities(losses: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of the labelled tokens of each row together.

    Args:
        losses: From `CompletionLoss.each`, shape `(slots, labelled tokens)`.
        labels: Shape `(rows, length)`.

    Returns:
        Shape `(slots, rows)`.
    """
    places = moved(labelled_places(labels), losses.device)
    filled = losses.new_zeros(len(losses), labels.numel()).index_copy(1, places, -losses)
    return filled.view(len(losses), *labels.shape).sum(dim=2)
