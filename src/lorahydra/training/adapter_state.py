"""The separate state of each adapter of a pack: optimiser, schedule, health, metrics, and how its training ended."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import get_scheduler

from lorahydra.errors import LorahydraError
from lorahydra.modeling.lora import random_state, set_random_state
from lorahydra.modeling.packing import Pack
from lorahydra.modeling.single import SingleAdapter
from lorahydra.names import EVAL, Metric, Score, scored
from lorahydra.training.checkpoints import TrainingFolder
from lorahydra.training.health import BestValidation, HealthCheck
from lorahydra.training.jobs import TrainedAdapter, TrainingJob
from lorahydra.training.optimizers import is_elementwise, make_optimizer
from lorahydra.utils.files import writing

__all__ = ["AdapterState"]

logger = logging.getLogger(__name__)


class AdapterState:
    """One adapter of a pack.

    Args:
        job: The training of this adapter.
        folder: The folder to which it is written.
        pack: The weights of all adapters.
        slot: The row of this adapter in the pack.
        total: Optimiser steps of the training.
    """

    def __init__(self, job: TrainingJob, folder: TrainingFolder, pack: Pack | SingleAdapter, slot: int, total: int):
        self.job = job
        self._folder = folder
        self.outcome: TrainedAdapter | LorahydraError | None = None
        """How the training ended; None while it goes on."""
        self._pack = pack
        self._slot = slot
        self._parameters = [nn.Parameter(part.contiguous()) for part in self._parts(pack.weights)]
        self._optimizer = make_optimizer(self._groups(), job.training)
        self._scheduler = get_scheduler(
            job.training.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=math.ceil(total * job.training.warmup_ratio),
            num_training_steps=total,
        )
        self._health = HealthCheck(job.training.divergence_factor)
        self._unlogged: list[float] = []
        self._started = time.perf_counter()
        self._last_logged = (self._started, 0)
        self._eval_loss = math.nan
        self._best = BestValidation()

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """This adapter's part of a tensor in the shape of the pack's weights, as the optimiser wants it."""
        # One row takes one call for all matrices; others need each matrix by itself, without the padding of its rank.
        if is_elementwise(self.job.training.optim) and self.job.lora.plus_ratio == 1:
            return [rows[self._slot]]
        return self._pack.matrices(rows, self._slot)

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters as the optimiser's groups; the rate of a second one is that of LoRA+."""
        if self.job.lora.plus_ratio == 1:
            return [{"params": self._parameters}]
        named = list(zip(self._pack.names, self._parameters, strict=True))
        b = [parameter for name, parameter in named if ".lora_B." in name]
        others = [parameter for name, parameter in named if ".lora_B." not in name]
        rate = self.job.training.learning_rate * self.job.lora.plus_ratio
        return [{"params": others}, {"params": b, "lr": rate}]

    def move(self, slot: int) -> None:
        """Go on with the same weights in another row."""
        self._slot = slot
        for parameter, part in zip(self._parameters, self._parts(self._pack.weights), strict=True):
            parameter.data = part.contiguous()

    def update(self, gradients: Tensor) -> None:
        """Take one optimiser step; `gradients` has the shape of the pack's weights."""
        for parameter, part in zip(self._parameters, self._parts(gradients), strict=True):
            parameter.grad = part.contiguous()
        self._optimizer.step()
        for parameter, part in zip(self._parameters, self._parts(self._pack.weights), strict=True):
            # Beside a larger rank a matrix has gaps, which no optimiser has to know of: it has changed a copy.
            if not part.is_contiguous():
                part.copy_(parameter.data)
        self._scheduler.step()
        self._optimizer.zero_grad()

    def resume(self) -> int:
        """Go on from the newest checkpoint, if there is one; returns how many optimiser steps it has behind it.

        Raises:
            ConfigError: It was made with other settings.
        """
        checkpoint = self._folder.newest_checkpoint()
        if checkpoint is None:
            return 0
        trained, state = checkpoint
        self._pack.weights[self._slot].copy_(state["weights"])
        self._pack.refresh()
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"], self._pack.weights.device)
        self._started -= trained.seconds
        self._eval_loss = trained.eval_loss
        self._best = BestValidation(**state["best"])
        return trained.steps

    def write_checkpoint(self, step: int) -> None:
        """Write a checkpoint, from which the training can be resumed.

        Raises:
            OutputError: The checkpoint cannot be written.
        """
        state = {
            "weights": self._pack.weights[self._slot].cpu(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": random_state(self._pack.weights.device),
            "best": vars(self._best),
        }
        with writing(self.job.output_dir):
            self._folder.write_checkpoint(self._trained(step), state, partial(self._pack.save, self._slot))

    def finish(self, steps: int) -> None:
        """Write the adapter that is kept, and the record that the training has ended.

        Raises:
            OutputError: They cannot be written.
        """
        if self._best.weights is not None:
            self._pack.weights[self._slot].copy_(self._best.weights)
            self._eval_loss = self._best.loss
        self._best.warn(self.job.output_dir)
        self.job.on_metrics({Metric.EVAL_BEST_STEP: self._best.step}, steps)
        with writing(self.job.output_dir):
            self._pack.save(self._slot, self._folder.adapter)
            trained = self._trained(steps)
            self._folder.mark_ended(trained)
        self.outcome = trained

    def _trained(self, steps: int) -> TrainedAdapter:
        seconds = time.perf_counter() - self._started
        return TrainedAdapter(self._folder.adapter, self._eval_loss, steps, seconds, self._best.step)

    @contextmanager
    def ends_on_error(self) -> Iterator[None]:
        """Let an error in the block end only this adapter; does nothing once the adapter has ended."""
        try:
            yield
        except LorahydraError as error:
            # Its traceback would hold the memory of the pack.
            self.outcome = self.outcome or error.with_traceback(None)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(self._scheduler.get_last_lr()[0])

    def stepped(self, step: int, loss: float, norm: float, rate: float, tokens: int) -> None:
        """Report an optimiser step whose figures have arrived.

        Args:
            step: Counted from 1.
            loss: Mean over the labelled tokens of the step.
            norm: The gradient's, before it was clipped.
            rate: Learning rate after the step.
            tokens: Tokens that were trained on so far.

        Raises:
            TrainingError: The training has gone wrong.
        """
        self._unlogged.append(loss)
        if step != 1 and step % self.job.training.logging_steps:
            return
        loss, now = sum(self._unlogged) / len(self._unlogged), time.perf_counter()
        self._unlogged.clear()
        speed = (tokens - self._last_logged[1]) / max(now - self._last_logged[0], 1e-9)
        self._last_logged = (now, tokens)
        self._health.check(step, {"loss": loss, "grad_norm": norm})
        self.job.on_metrics(
            {
                Metric.TRAIN_LOSS: loss,
                Metric.TRAIN_LEARNING_RATE: rate,
                Metric.TRAIN_GRAD_NORM: norm,
                Metric.TRAIN_TOKENS_PER_SECOND: speed,
            },
            step,
        )

    def validated(self, step: int, eval_loss: float, others: Mapping[str, float]) -> None:
        """Report a validation: the loss, and other metrics by name.

        Raises:
            TrainingError: The loss is not a number.
            TrialPruned: The study ends the trial here.
        """
        self.check_loss(step, eval_loss)
        self._eval_loss = eval_loss
        keeps_best = self.job.training.keep == "best"
        self._best.update(step, eval_loss, self._pack.weights[self._slot] if keeps_best else None)
        if others:
            figures = ", ".join(f"{name} {value:.4f}" for name, value in others.items())
            logger.info("Step %d: validation loss %.4f, %s", step, eval_loss, figures)
        self.job.on_metrics({scored(EVAL, Score.LOSS): eval_loss, **others}, step)

    def check_loss(self, step: int, eval_loss: float) -> None:
        """Check a validation loss.

        Raises:
            TrainingError: It is not a number.
        """
        self._health.check(step, {"eval_loss": eval_loss})

    @property
    def out_of_patience(self) -> bool:
        """Whether the validation loss has not fallen for as long as the job allows."""
        return 0 < self.job.training.early_stopping_patience <= self._best.since

    @property
    def note(self) -> str:
        """The last training loss, for the progress bar."""
        return f"loss {self._health.losses[-1]:.3f}" if self._health.losses else ""
