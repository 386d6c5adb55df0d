"""The training loop: one to k adapters on one frozen base model, all of which see the same batches.

Each adapter is trained as if it were alone: with its own learning rate, schedule, decay, dropout, clipping and end. On
a CPU the result is the same bit for bit, regardless of which other adapters are in the pack.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.cuda_graphs import recorder
from lorahydra.modeling.devices import moved
from lorahydra.modeling.generation import context_window
from lorahydra.modeling.memory import ran_out_of_memory, release_memory
from lorahydra.modeling.packing import Pack
from lorahydra.modeling.single import SingleAdapter
from lorahydra.training.adapter_state import AdapterState
from lorahydra.training.batches import Batch, collate, sorted_batches, step_batches
from lorahydra.training.jobs import Race, Standing, TokenizedExamples, steps_per_epoch, total_steps
from lorahydra.training.loss import CompletionLoss, loss_scale
from lorahydra.training.objectives import Objective, objective_of
from lorahydra.training.recorded import RecordedPasses, padded
from lorahydra.utils.progress import Progress

__all__ = ["fit"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def fit(
    base: BaseModel,
    pack: Pack | SingleAdapter,
    adapters: Sequence[AdapterState],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
    steps_done: int = 0,
    race: Race | None = None,
) -> None:
    """Train attached adapters, and write those that reach the end.

    Args:
        base: The base model.
        pack: The weights of the adapters.
        adapters: The adapters, in the order of the pack. Each gets its outcome: the trained adapter, or the error that
            ended it, after which the others went on.
        train_data: The examples that all are trained on.
        eval_data: The examples that all are validated on.
        progress: Where to show the progress.
        steps_done: Optimiser steps that were taken before.
        race: Ends adapters that are behind the others.
    """
    first, config = adapters[0].job, adapters[0].job.training
    total = total_steps(config, len(train_data))
    # 0: only at the end.
    every = (
        math.ceil(steps_per_epoch(config, len(train_data)) / config.evals_per_epoch) if config.evals_per_epoch else 0
    )
    # The last of several that fall on one step counts.
    races = {math.ceil(fraction * total): fraction for fraction in sorted(race.fractions)} if race else {}
    if config.gradient_checkpointing:
        base.model.activation_checkpointing_enable()
        pack.recomputes()
    run = _Run(base, pack, adapters)
    if pack.slots > 1 and base.device.type != "cpu":
        run.try_longest(train_data)
    with progress.task("Training", total) as advance:
        advance(steps_done, "")
        for step, batches in enumerate(step_batches(first, train_data, steps_done, total), start=steps_done + 1):
            losses, gradients = run.losses_and_gradients(step, batches)
            norms = run.clip(gradients)
            run.update(gradients)
            run.report(step, losses, norms, batches)
            due = step == total or (every and step % every == 0)
            if due or step in races:
                sums, items = run.validate(eval_data)
                if due:
                    run.validated(step, sums, items)
                if race is not None and step in races and step < total:
                    run.compare(race, step, races[step], sums[0], items)
            run.write_checkpoints(step, last=step == total)
            run.stop_early(step)
            run.drop_ended()
            if not run.adapters:
                break
            advance(1, run.adapters[0].note)
    for adapter in run.adapters:
        with adapter.ends_on_error():
            adapter.finish(total)


class _Run:
    """A training in progress.

    Args:
        base: The base model, with the pack attached.
        pack: The weights of the adapters.
        adapters: The adapters, in the order of the pack.
    """

    def __init__(self, base: BaseModel, pack: Pack | SingleAdapter, adapters: Sequence[AdapterState]) -> None:
        self.adapters = adapters
        """The adapters that are still trained."""
        self._base = base
        self._pack = pack
        self._loss = CompletionLoss(base.model, pack.slots)
        self._objective = self._new_objective()
        can_record = self._loss.from_hidden and not adapters[0].job.training.gradient_checkpointing
        self._record = recorder(base.device) if can_record else None
        self._recorded = self._new_recordings()
        self._window = context_window(base.model)
        self._tokens = 0
        self._arriving: deque[_Figures] = deque()

    def losses_and_gradients(self, step: int, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Mean loss of each adapter over the items of the step, shape `(slots,)`, and its gradient."""
        items = sum(map(self._objective.items, batches))
        losses = gradients = torch.empty(0)
        for part, batch in enumerate(batches):
            means, new = self._with_room(partial(self._passes, (step, part), batch, items))
            losses = losses + means if part else means
            # What is recorded is overwritten by the next part.
            gradients = gradients.add_(new) if part else new.clone() if len(batches) > 1 else new
        return losses, gradients

    def _passes(self, place: tuple[int, int], batch: Batch, items: int) -> tuple[Tensor, Tensor]:
        self._pack.at(*place)
        if self._recorded is not None:
            batch = padded(batch, self._window)
            if (done := self._recorded.run(batch, items)) is not None:
                return done
        means = self._sums(batch)[0] / items
        scale = loss_scale(self._base.dtype, items)
        (means.sum() * scale).backward()
        return means.detach(), self._pack.take_gradients().div_(scale)

    def _with_room(self, work: Callable[[], Result]) -> Result:
        """Do some work; if memory runs out while recordings hold some, do it again and go on without them."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if self._recorded is None or not self._recorded.hold_memory or not ran_out_of_memory(error):
                raise
        logger.warning("Out of memory: training goes on without recorded steps, which is slower")
        self._record = self._recorded = None
        self._pack.take_gradients()
        release_memory()
        return work()

    def _new_recordings(self) -> RecordedPasses | None:
        if self._record is None:
            return None
        return RecordedPasses(self._base, self._pack, self._loss, self._objective, self._record)

    def _new_objective(self) -> Objective:
        return objective_of([adapter.job.training for adapter in self.adapters], self._loss, self._base.device)

    def try_longest(self, data: TokenizedExamples) -> None:
        """Run the longest batch once, so that a pack that does not fit runs out of memory before the training."""
        lengths = torch.tensor(list(data.lengths))
        size = self.adapters[0].job.training.per_device_train_batch_size
        longest = lengths.topk(min(size, len(lengths))).indices.tolist()
        self.losses_and_gradients(0, [collate([data[row] for row in longest])])

    def _sums(self, batch: Batch) -> Tensor:
        # The labels stay on the CPU, where their places are known before the model has run.
        ids = moved(batch["input_ids"], self._base.device)
        losses = self._loss.each(self._base.model, ids, batch["labels"], self._pack.slots)
        return self._objective.sums(losses, batch)

    def clip(self, gradients: Tensor) -> Tensor:
        """Clip each gradient to the norm that its adapter allows; returns the norms before clipping."""
        norms = self._pack.norms(gradients)
        limits = [adapter.job.training.max_grad_norm or math.inf for adapter in self.adapters]
        # In the order of `clip_grad_norm_`.
        factors = (norms + 1e-6).reciprocal() * moved(torch.tensor(limits, dtype=norms.dtype), norms.device)
        gradients *= factors.clamp(max=1.0).unsqueeze(1)
        return norms

    def update(self, gradients: Tensor) -> None:
        """Take the optimiser step of each adapter."""
        for adapter in self.adapters:
            adapter.update(gradients)
        self._pack.refresh()

    def report(self, step: int, losses: Tensor, norms: Tensor, batches: Sequence[Batch]) -> None:
        """Pass on the figures of a step; on a GPU those of the step before, so that nothing waits for this one."""
        self._tokens += sum(int(batch["lengths"].sum()) for batch in batches)
        rates = [adapter.rate for adapter in self.adapters]
        self._arriving.append(_Figures(step, self._tokens, rates, torch.stack([losses, norms.to(losses.dtype)])))
        self._receive(late=1 if losses.is_cuda else 0)

    def _receive(self, late: int = 0) -> None:
        while len(self._arriving) > late:
            figures = self._arriving.popleft()
            for adapter, rate, loss, norm in zip(self.adapters, figures.rates, *figures.values(), strict=True):
                with adapter.ends_on_error():
                    adapter.stepped(figures.step, loss, norm, rate, figures.tokens)

    def validate(self, data: TokenizedExamples) -> tuple[list[list[list[float]]], list[int]]:
        """The sum of each figure of each adapter over each batch of `data`, the loss first; and the items of each."""
        self._receive()
        sums, items, model = [], [], self._base.model.eval()
        with torch.no_grad():
            size = self.adapters[0].job.training.per_device_eval_batch_size
            for rows in sorted_batches([int(length) for length in data.lengths], size):
                batch = collate([data[row] for row in rows])
                sums.append(self._with_room(partial(self._sums, batch)))
                items.append(self._objective.items(batch))
        model.train()
        return torch.stack(sums, dim=2).tolist(), items

    def validated(self, step: int, sums: Sequence[Sequence[Sequence[float]]], items: Sequence[int]) -> None:
        """Report the means of a validation, each item counting once."""
        for adapter, figures in zip(self.adapters, zip(*sums, strict=True), strict=True):
            loss, *others = (sum(values) / sum(items) for values in figures)
            with adapter.ends_on_error():
                adapter.validated(step, loss, dict(zip(self._objective.metrics, others, strict=True)))

    def compare(
        self, race: Race, step: int, fraction: float, sums: Sequence[Sequence[float]], items: Sequence[int]
    ) -> None:
        """End the adapters that are behind; the others stay as they would be alone."""
        for adapter, values in zip(self.adapters, sums, strict=True):
            with adapter.ends_on_error():
                adapter.check_loss(step, sum(values) / sum(items))
        going = [slot for slot, adapter in enumerate(self.adapters) if adapter.outcome is None]
        if len(going) < 2:
            return
        jobs, parts = [self.adapters[slot].job for slot in going], [sums[slot] for slot in going]
        losses = [sum(values) / sum(items) for values in parts]
        for place, error in race.ended(Standing(fraction, jobs, losses, parts, items)).items():
            self.adapters[going[place]].outcome = error

    def write_checkpoints(self, step: int, *, last: bool) -> None:
        """Write the checkpoints that are due."""
        for adapter in self.adapters:
            every = adapter.job.training.save_steps
            if every and (last or step % every == 0):
                self._receive()
                with adapter.ends_on_error():
                    adapter.write_checkpoint(step)

    def stop_early(self, step: int) -> None:
        """Write the adapters whose validation loss has not fallen for as long as their jobs allow."""
        for adapter in self.adapters:
            if adapter.outcome is None and adapter.out_of_patience:
                with adapter.ends_on_error():
                    adapter.finish(step)

    def drop_ended(self) -> None:
        """Go on without the adapters whose training has ended."""
        left = [slot for slot, adapter in enumerate(self.adapters) if adapter.outcome is None]
        if len(left) == len(self.adapters):
            return
        self._receive()
        self.adapters = [self.adapters[slot] for slot in left]
        if left:
            self._pack.keep(left)
            self._objective = self._new_objective()
            self._recorded = self._new_recordings()
        for slot, adapter in enumerate(self.adapters):
            adapter.move(slot)


class _Figures:
    """Losses and norms of a step, `values` of shape `(2, slots)`, copied to the CPU without making it wait."""

    def __init__(self, step: int, tokens: int, rates: Sequence[float], values: Tensor) -> None:
        self.step = step
        self.tokens = tokens
        self.rates = rates
        self._values = values
        self._arrived = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def values(self) -> list[list[float]]:
        """Losses and norms."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()
