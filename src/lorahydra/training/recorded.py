"""Forward and backward passes on a GPU, recorded for each shape of a batch and then repeated without Python.

What lies between them, the loss of the labelled positions, differs in shape from batch to batch and is computed as
usual. Batches are padded a little, so that few shapes occur; padding on the right changes nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.cuda_graphs import NotRecordableError, Recorder
from lorahydra.modeling.devices import moved
from lorahydra.modeling.packing import Pack
from lorahydra.modeling.single import SingleAdapter
from lorahydra.training.batches import Batch
from lorahydra.training.loss import IGNORED, CompletionLoss, loss_scale
from lorahydra.training.objectives import Objective

__all__ = ["RecordedPasses", "padded"]

logger = logging.getLogger(__name__)

STEPS = ((512, 32), (1024, 64))
"""Up to so many tokens, lengths are padded to a multiple of so many."""
LONG = 128
"""The same for longer ones."""
LARGEST_NUMBER = 32
"""Shapes that are recorded: each takes some megabytes beside the memory that all share."""


def padded(batch: Batch, window: int | None) -> Batch:
    """The batch with rows of a length that occurs often, but not beyond the context window."""
    length = batch["input_ids"].shape[1]
    more = -length % next((step for limit, step in STEPS if length <= limit), LONG)
    if window is not None:
        more = max(0, min(more, window - length))
    return batch | {
        "input_ids": functional.pad(batch["input_ids"], (0, more)),
        "labels": functional.pad(batch["labels"], (0, more), value=IGNORED),
    }


class _Passes:
    """The passes of one shape; their tensors stay where they are.

    Args:
        base: The base model.
        pack: The adapters.
        loss: Follows from hidden states.
        shape: Of `ids`.
        gradients: Receives the gradients of the adapters.
    """

    def __init__(
        self, base: BaseModel, pack: Pack | SingleAdapter, loss: CompletionLoss, shape: torch.Size, gradients: Tensor
    ) -> None:
        self._base = base
        self._pack = pack
        self._loss = loss
        self._gradients = gradients
        self.ids = torch.zeros(shape, dtype=torch.long, device=base.device)
        weight = loss.head_weight
        self.gradient = weight.new_zeros(pack.slots * shape[0], shape[1], weight.shape[1])
        """Of `hidden`."""
        self.hidden = self.gradient
        """What the forward pass computed."""

    def forward(self) -> None:
        """The forward pass up to the output head."""
        self.hidden = self._loss.hidden(self._base.model, self.ids, self._pack.slots)

    def backward(self) -> None:
        """The backward pass from there."""
        self.hidden.backward(self.gradient)
        self._gradients.copy_(self._pack.take_gradients())


class RecordedPasses:
    """Records the passes of each shape the second time that it occurs.

    Args:
        base: The base model.
        pack: The adapters, which stay the same.
        loss: Follows from hidden states.
        objective: Follows from the loss.
        record: Records them.
    """

    def __init__(
        self,
        base: BaseModel,
        pack: Pack | SingleAdapter,
        loss: CompletionLoss,
        objective: Objective,
        record: Recorder,
    ) -> None:
        self._base = base
        self._pack = pack
        self._loss = loss
        self._objective = objective
        self._record: Recorder | None = record
        self._seen: Counter[torch.Size] = Counter()
        self._recordings: dict[torch.Size, tuple[_Passes, Callable[[], None], Callable[[], None]]] = {}

    @cached_property
    def _gradients(self) -> Tensor:
        """Receives the gradients of every shape; made for the first one that is recorded."""
        return torch.empty_like(self._pack.weights)

    @property
    def hold_memory(self) -> bool:
        """Whether there are recordings, which hold the memory of the largest of them."""
        return bool(self._recordings)

    def _may_record(self, shape: torch.Size) -> bool:
        return self._seen[shape] == 2 and len(self._recordings) < LARGEST_NUMBER

    def run(self, batch: Batch, items: int) -> tuple[Tensor, Tensor] | None:
        """Mean losses and gradients of a padded batch, as `losses_and_gradients` returns them.

        The gradients are overwritten by the next run.

        Args:
            batch: The batch.
            items: Labelled tokens, or pairs, of the optimiser step.

        Returns:
            None if the batch has to be computed as usual.
        """
        shape = batch["input_ids"].shape
        self._seen[shape] += 1
        if shape not in self._recordings and self._record is not None and self._may_record(shape):
            passes = _Passes(self._base, self._pack, self._loss, shape, self._gradients)
            try:
                forward = self._record(passes.forward, self._pack.generator)
                self._recordings[shape] = (passes, forward, self._record(passes.backward))
                # Its graph would keep nodes of the recording's stream alive, on which later passes then wait.
                passes.hidden = passes.hidden.detach()
            except NotRecordableError as error:
                logger.debug("training steps cannot be recorded: %s", error)
                self._record = None
                # A backward pass that broke off has left gradients that were never computed.
                self._pack.take_gradients()
        if shape not in self._recordings:
            return None
        passes, forward, backward = self._recordings[shape]
        passes.ids.copy_(moved(batch["input_ids"], self._base.device))
        forward()
        hidden = passes.hidden.detach().requires_grad_()
        losses = self._loss.each_of_hidden(hidden, batch["labels"], self._pack.slots)
        means = self._objective.sums(losses, batch)[0] / items
        scale = loss_scale(self._base.dtype, items)
        [gradient] = torch.autograd.grad(means.sum() * scale, hidden)
        passes.gradient.copy_(gradient)
        backward()
        return means.detach(), self._gradients.div_(scale)
