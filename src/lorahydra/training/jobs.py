"""The input and output of training: jobs, tokenised examples, trained adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.errors import LorahydraError

__all__ = [
    "OnMetrics",
    "Race",
    "RaceOf",
    "Standing",
    "TokenizedExamples",
    "TrainedAdapter",
    "TrainingJob",
    "steps_per_epoch",
    "total_steps",
]

OnMetrics = Callable[[Mapping[str, float], int], None]
"""Called with metric values by name and the optimiser step."""


class TokenizedExamples(Protocol):
    """A tokenised split as training needs it: its examples by index, and all lengths in advance."""

    @property
    def lengths(self) -> Iterable[int]:
        """Tokens of each example."""

    @property
    def digest(self) -> str:
        """Digest of the examples."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """`input_ids` and `labels`, sequences of the same length; for DPO also `rejected_ids` and `rejected_labels`."""


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train."""

    lora: LoraConfig
    training: TrainingConfig
    seed: int
    output_dir: Path
    """The adapter is written to `output_dir/adapter`, checkpoints to `output_dir/checkpoints`. With `training.resume`,
    what exists there is used: a training that has ended is not repeated. Otherwise it is removed."""
    on_metrics: OnMetrics = lambda values, step: None
    """Receives the metrics of the training as they arise."""


@dataclass(frozen=True)
class TrainedAdapter:
    """The adapter of a training that has ended, or has reached a checkpoint."""

    folder: Path
    """In PEFT's format; it applies to the base model as it was before the training."""
    eval_loss: float
    """Mean loss of the validation split, per labelled token, or with DPO per pair; for a checkpoint, the last one that
    was measured."""
    steps: int
    """Optimiser steps of the training so far."""
    seconds: float
    """Wall time of training, validating and saving."""
    best_step: int = 0
    """Optimiser step of the lowest validation loss; 0 if none was measured, or an earlier version trained it."""


@dataclass(frozen=True)
class Standing:
    """The adapters of a pack that are still trained, at one point of their schedules."""

    fraction: float
    """Of the schedule."""
    jobs: Sequence[TrainingJob]
    losses: Sequence[float]
    """Mean validation loss of each adapter, per labelled token or per pair, finite."""
    parts: Sequence[Sequence[float]]
    """The same losses as sums over parts of the validation rows, by adapter; all have the same parts."""
    items: Sequence[int]
    """Labelled tokens, or pairs, of each part."""


class Race(Protocol):
    """Compares the adapters of a pack during their training."""

    @property
    def fractions(self) -> Sequence[float]:
        """Where in their schedules, above 0 and below 1."""

    def ended(self, standing: Standing) -> Mapping[int, LorahydraError]:
        """Which adapters end here, by their places, with the outcome of each."""


RaceOf = Callable[[Sequence[TrainingJob]], Race | None]
"""Called with the jobs that are trained side by side, before their training begins; None if they run to the end."""


def steps_per_epoch(config: TrainingConfig, examples: int) -> int:
    """Optimiser steps in one pass over the examples."""
    batches = math.ceil(examples / config.per_device_train_batch_size)
    return math.ceil(batches / config.gradient_accumulation_steps)


def total_steps(config: TrainingConfig, examples: int) -> int:
    """Optimiser steps of a training."""
    if config.max_steps > 0:
        return config.max_steps
    return math.ceil(config.num_train_epochs * steps_per_epoch(config, examples))
