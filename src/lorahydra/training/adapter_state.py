"""What each adapter of a pack has to itself: optimiser, schedule, health, metrics, and how it ended."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.optimization import Adafactor

from lorahydra.config.schema import TrainingConfig
from lorahydra.errors import LorahydraError
from lorahydra.modeling.lora import random_state, set_random_state
from lorahydra.modeling.packing import Pack
from lorahydra.modeling.single import SingleAdapter
from lorahydra.names import ADAPTER_DIR, EVAL, Metric, Score, scored
from lorahydra.training.checkpoints import Ended, Settings, newest_checkpoint, write_checkpoint, write_ended
from lorahydra.training.health import Health
from lorahydra.training.jobs import TrainedAdapter, TrainingJob
from lorahydra.utils.files import writing

__all__ = ["AdapterState"]

logger = logging.getLogger(__name__)

SHORTEST_CURVE = 3
"""Validations: of fewer the best is always the first or the last."""


@dataclass
class Best:
    """The lowest validation loss so far."""

    loss: float = math.inf
    step: int = 0
    weights: Tensor | None = None
    """At that step, if the best adapter is kept."""
    validations: int = 0
    """All of them."""
    since: int = 0
    """Those after the best."""

    def measured(self, step: int, loss: float, weights: Tensor | None) -> None:
        """Take in one validation."""
        self.validations += 1
        self.since += 1
        if loss < self.loss:
            self.loss, self.step, self.since = loss, step, 0
            self.weights = None if weights is None else weights.clone()

    def warn(self, folder: Path) -> None:
        """Say so when the end of the curve is not its valley."""
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


class AdapterState:
    """One adapter of a pack.

    Args:
        job: What it was asked for.
        settings: What decides which adapter it makes.
        pack: Where its weights are.
        slot: Its row there.
        total: Optimiser steps of the training.
    """

    def __init__(self, job: TrainingJob, settings: Settings, pack: Pack | SingleAdapter, slot: int, total: int) -> None:
        self.job = job
        self._settings = settings
        self.outcome: TrainedAdapter | LorahydraError | None = None
        """How it ended."""
        self._pack = pack
        self._slot = slot
        self._parameters = [nn.Parameter(part) for part in self._own(pack.weights)]
        self._optimizer = _optimizer(self._parameters, job.training)
        self._scheduler = get_scheduler(
            job.training.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=math.ceil(total * job.training.warmup_ratio),
            num_training_steps=total,
        )
        self._health = Health(job.training.divergence_factor)
        self._unlogged: list[float] = []
        self._started = time.perf_counter()
        self._last = (self._started, 0)
        self._eval_loss = math.nan
        self._best = Best()

    def _own(self, rows: Tensor) -> list[Tensor]:
        """Its part of a tensor in the shape of the pack's weights."""
        # What looks at each number alone needs one call for all of them; Adafactor looks at rows and columns.
        if self.job.training.optim == "adafactor":
            return self._pack.matrices(rows, self._slot)
        return [rows[self._slot]]

    def move(self, slot: int) -> None:
        """Go on with the same weights in another row."""
        self._slot = slot
        for parameter, part in zip(self._parameters, self._own(self._pack.weights), strict=True):
            parameter.data = part

    def update(self, gradients: Tensor) -> None:
        """Take one optimiser step; `gradients` has the shape of the pack's weights."""
        for parameter, part in zip(self._parameters, self._own(gradients), strict=True):
            parameter.grad = part
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()

    def resume(self) -> int:
        """Go on from the newest checkpoint, if there is one; returns the optimiser steps that it has behind it.

        Raises:
            ConfigError: It was made with other settings.
        """
        checkpoint = newest_checkpoint(self.job.output_dir, self._settings)
        if checkpoint is None:
            return 0
        found, state = checkpoint
        self._pack.weights[self._slot].copy_(state["weights"])
        self._pack.refresh()
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"], self._pack.weights.device)
        self._started -= found.seconds
        self._eval_loss = found.eval_loss
        self._best = Best(**state["best"])
        return found.steps

    def write_checkpoint(self, step: int) -> None:
        """Write what is needed to go on from here.

        Raises:
            OutputError: It cannot be written.
        """
        state = {
            "weights": self._pack.weights[self._slot].cpu(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": random_state(self._pack.weights.device),
            "best": vars(self._best),
        }
        with writing(self.job.output_dir):
            save = partial(self._pack.save, self._slot)
            write_checkpoint(self.job.output_dir, self._settings, self._found(step), state, save)

    def finish(self, steps: int) -> None:
        """Write the adapter that is kept, and that the training has ended.

        Raises:
            OutputError: They cannot be written.
        """
        if self._best.weights is not None:
            self._pack.weights[self._slot].copy_(self._best.weights)
            self._eval_loss = self._best.loss
        self._best.warn(self.job.output_dir)
        self.job.on_metrics({Metric.EVAL_BEST_STEP: self._best.step}, steps)
        folder = self.job.output_dir / ADAPTER_DIR
        with writing(self.job.output_dir):
            self._pack.save(self._slot, folder)
            found = self._found(steps)
            write_ended(self.job.output_dir, self._settings, found)
        self.outcome = TrainedAdapter(folder, **vars(found))

    def _found(self, steps: int) -> Ended:
        return Ended(self._eval_loss, steps, time.perf_counter() - self._started, self._best.step)

    @contextmanager
    def ends_on_error(self) -> Iterator[None]:
        """Let an error in the block end this adapter and nothing else; does nothing once it has ended."""
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
            norm: Of the gradient, before it was clipped.
            rate: Learning rate after the step.
            tokens: That were trained on so far.

        Raises:
            TrainingError: The training has gone wrong.
        """
        self._unlogged.append(loss)
        if step != 1 and step % self.job.training.logging_steps:
            return
        loss, now = sum(self._unlogged) / len(self._unlogged), time.perf_counter()
        self._unlogged.clear()
        speed = (tokens - self._last[1]) / max(now - self._last[0], 1e-9)
        self._last = (now, tokens)
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

    def validated(self, step: int, eval_loss: float) -> None:
        """Report a validation.

        Raises:
            TrainingError: The loss is not a number.
            TrialPruned: The study ends the trial here.
        """
        self._health.check(step, {"eval_loss": eval_loss})
        self._eval_loss = eval_loss
        keeps = self.job.training.keep == "best"
        self._best.measured(step, eval_loss, self._pack.weights[self._slot] if keeps else None)
        self.job.on_metrics({scored(EVAL, Score.LOSS): eval_loss}, step)

    @property
    def waited_enough(self) -> bool:
        """Whether the validation loss has not fallen for as long as the job allows."""
        return 0 < self.job.training.early_stopping_patience <= self._best.since

    @property
    def note(self) -> str:
        """The last training loss, for people."""
        return f"loss {self._health.losses[-1]:.3f}" if self._health.losses else ""


def _optimizer(parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """With the settings that `transformers.TrainingArguments` gives each by default."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optim == "adafactor":
        chosen: torch.optim.Optimizer = Adafactor(parameters, scale_parameter=False, relative_step=False, **common)
        return chosen
    if config.optim == "sgd":
        return torch.optim.SGD(parameters, **common)
    # On a GPU one kernel instead of a dozen.
    fused = config.optim == "adamw_torch_fused" or parameters[0].is_cuda
    return torch.optim.AdamW(parameters, fused=fused, **common)
