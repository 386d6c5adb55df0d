"""The reference of DPO: how probable the untuned model finds the answers of each pair, computed once per process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.devices import moved
from lorahydra.modeling.memory import with_a_batch_that_fits
from lorahydra.modeling.precision import matmul_precision
from lorahydra.modeling.single import own_dropout
from lorahydra.training.batches import collate, sorted_batches
from lorahydra.training.jobs import TokenizedExamples
from lorahydra.training.loss import CompletionLoss
from lorahydra.training.objectives import log_probabilities
from lorahydra.utils.progress import Progress

__all__ = ["WithReference", "with_reference"]

BATCH = 8
"""Pairs at a time: always the same, so that results do not depend on which trial came first."""

_known: WeakKeyDictionary[nn.Module, dict[object, Tensor]] = WeakKeyDictionary()


class WithReference:
    """Pairs of answers with the reference's log-probabilities of both."""

    def __init__(self, data: TokenizedExamples, reference: Tensor) -> None:
        self._data = data
        self._reference = reference

    @property
    def lengths(self) -> Iterable[int]:
        """Tokens of the longer side of each pair."""
        return self._data.lengths

    @property
    def digest(self) -> str:
        """Digest of the pairs."""
        return self._data.digest

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A pair with its `reference`: the log-probabilities of the chosen and the rejected answer, shape `(2,)`."""
        return {**self._data[index], "reference": self._reference[index]}


def with_reference(
    base: BaseModel, data: TokenizedExamples, precision: str, progress: Progress, *, training: bool
) -> WithReference:
    """Let the base model, without an adapter, find the log-probabilities of the answers.

    Args:
        base: The base model.
        data: Pairs of answers.
        precision: `training.matmul_precision`, which matters for rows that are trained on.
        progress: Where to show the progress.
        training: Whether they are trained on. Then the layers compute as they do in training, so that a new adapter
            begins with a margin of 0.

    Raises:
        OutOfMemoryError: Memory does not suffice for one pair.
    """
    # A model with dropout of its own would be a different reference each time.
    training = training and own_dropout(base) is None
    key = (data.digest, str(base.dtype), training, precision if training else "")
    known = _known.setdefault(base.model, {})
    if key not in known:
        was_training = base.model.training
        try:
            with torch.no_grad(), matmul_precision(base, precision):
                base.model.train(training)
                known[key], _ = with_a_batch_that_fits(partial(_computed, base, data, progress), BATCH)
        finally:
            base.model.train(was_training)
    return WithReference(data, known[key])


def _computed(base: BaseModel, data: TokenizedExamples, progress: Progress, size: int) -> Tensor:
    """The log-probabilities of chosen and rejected answers, on the CPU, shape `(pairs, 2)`."""
    loss, reference = CompletionLoss(base.model), torch.zeros(len(data), 2)
    with progress.task("Reference", len(data)) as advance:
        for rows in sorted_batches([int(length) for length in data.lengths], size):
            batch = collate([data[row] for row in rows])
            losses = loss.each(base.model, moved(batch["input_ids"], base.device), batch["labels"])
            [found] = log_probabilities(losses, batch["labels"]).cpu()
            reference[rows] = found.view(2, -1).T.to(reference.dtype)
            advance(len(rows), "")
    return reference
