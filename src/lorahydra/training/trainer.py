"""`transformers.Trainer` with completion-only loss, a token-weighted validation loss and live metrics."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorahydra.modeling.files import disk_errors
from lorahydra.names import EVAL, Metric, Score, scored
from lorahydra.training.batches import EpochSampler, collate, sorted_batches
from lorahydra.training.health import Health
from lorahydra.training.jobs import OnMetrics
from lorahydra.training.loss import IGNORED, CompletionLoss
from lorahydra.training.resuming import Settings, seal

__all__ = ["AdapterTrainer", "HealthCheck", "MetricsCallback"]


class AdapterTrainer(Trainer):
    """Trains an adapter on tokenised examples with `input_ids` and `labels`; `settings` go into its checkpoints."""

    def __init__(self, model: nn.Module, args: TrainingArguments, settings: Settings, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, data_collator=collate, **kwargs)
        self.settings = settings
        # The loss below divides by the labelled tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True
        self.completion_loss = CompletionLoss(model)
        self.trained_tokens = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean loss over the labelled tokens of the (accumulated) batch."""
        labels = inputs["labels"]
        total: Tensor = self.completion_loss(model, inputs["input_ids"], labels)[0]
        items = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        if model.training:
            self.trained_tokens += int(inputs["lengths"].sum())
        loss: Tensor = total / items
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over all labelled tokens of the validation split, each token counting once."""
        data, model = self.eval_dataset, self.model
        was_training = model.training
        model.eval()
        total, items = 0.0, 0
        for indices in sorted_batches(list(data.lengths), self.args.per_device_eval_batch_size):
            batch = self._prepare_inputs(collate([data[index] for index in indices]))
            total += float(self.completion_loss(model, batch["input_ids"], batch["labels"]))
            items += int((batch["labels"][:, 1:] != IGNORED).sum())
        model.train(was_training)
        metrics = {"eval_loss": total / items}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        try:
            with disk_errors():
                super()._save_checkpoint(*arguments, **options)
                seal(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"), self.settings)
        except RuntimeError as error:
            # torch.save says so when a write failed, and not why; a full disk is what it nearly always is.
            if "PytorchStreamWriter" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error

    def take_if_ended(self, checkpoint: Path, total: int) -> bool:
        """Load the adapter and state of a checkpoint of the last step, after which `Trainer` would make one more.

        Args:
            checkpoint: A whole one.
            total: Optimiser steps of the training.

        Returns:
            Whether it is one of the last step.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < total:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        data = self.train_dataset if train_dataset is None else train_dataset
        return EpochSampler(
            [int(length) for length in data.lengths],
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            self.args.data_seed,
            group_by_length=self.args.train_sampling_strategy == "group_by_length",
        )


class MetricsCallback(TrainerCallback):
    """Passes the trainer's logs on, in lorahydra's names."""

    def __init__(self, on_metrics: OnMetrics, advance: Callable[[int, str], None], tokens: Callable[[], int]) -> None:
        self._on_metrics = on_metrics
        self._advance = advance
        self._tokens = tokens
        self._last = (time.perf_counter(), 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Translate one log entry."""
        logs = logs or {}
        metrics = {
            name: float(logs[key])
            for key, name in (
                ("loss", Metric.TRAIN_LOSS),
                ("learning_rate", Metric.TRAIN_LEARNING_RATE),
                ("grad_norm", Metric.TRAIN_GRAD_NORM),
                ("eval_loss", scored(EVAL, Score.LOSS)),
            )
            if key in logs
        }
        if "loss" in logs:
            now, tokens = time.perf_counter(), self._tokens()
            metrics[Metric.TRAIN_TOKENS_PER_SECOND] = (tokens - self._last[1]) / max(now - self._last[0], 1e-9)
            self._last = (now, tokens)
        if metrics:
            self._on_metrics(metrics, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the progress bar."""
        losses = [entry["loss"] for entry in state.log_history[-3:] if "loss" in entry]
        self._advance(1, f"loss {float(losses[-1]):.3f}" if losses else "")


class HealthCheck(TrainerCallback):
    """Lets `Health` judge the trainer's logs."""

    def __init__(self, divergence_factor: float) -> None:
        self._health = Health(divergence_factor)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **_: Any,
    ) -> None:
        """Judge one log entry."""
        values = {key: float(value) for key, value in (logs or {}).items() if key in ("loss", "grad_norm", "eval_loss")}
        self._health.check(state.global_step, values)
