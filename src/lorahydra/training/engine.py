"""The training engine: jobs in, adapters on disk and their metrics out."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.errors import TrainingError
from lorahydra.modeling.adapters import adapter, save_adapter
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.memory import keep_freed_memory, ran_out_of_memory, release_memory
from lorahydra.progress import Progress
from lorahydra.storage import writing
from lorahydra.training.trainer import AdapterTrainer, HealthCheck, MetricsCallback, OnMetrics

logger = logging.getLogger(__name__)

__all__ = ["TokenizedExamples", "TrainedAdapter", "TrainingJob", "train"]


class TokenizedExamples(Protocol):
    """What training needs of a tokenised split: `input_ids` and `labels` by index, and all lengths beforehand."""

    @property
    def lengths(self) -> Iterable[int]:
        """Tokens of each example."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """`input_ids` and `labels`, sequences of the same length."""


def _ignore(_: Mapping[str, float], __: int) -> None:
    """Drop metrics."""


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train."""

    lora: LoraConfig
    training: TrainingConfig
    seed: int
    output_dir: Path
    """The adapter goes to `output_dir/adapter`, checkpoints to `output_dir/checkpoints`."""
    on_metrics: OnMetrics = _ignore
    """Receives training metrics while they arise."""


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished training."""

    folder: Path
    """PEFT's format; applies to the base model as it was."""
    eval_loss: float
    """Mean loss per labelled token of the validation split, after training."""
    steps: int
    """Optimiser steps."""
    seconds: float
    """Wall time of attaching, training, validating and saving."""


def train(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
) -> list[TrainedAdapter]:
    """Train one adapter per job on the shared base model, which is the same afterwards, bit for bit.

    Raises:
        TrainingError: A job's loss became NaN (`nan`), ran away (`diverged`) or memory ran out (`out_of_memory`).
        OutputError: Results cannot be written.
    """
    return [_train_one(base, job, train_data, eval_data, progress or Progress()) for job in jobs]


def _train_one(
    base: BaseModel,
    job: TrainingJob,
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
) -> TrainedAdapter:
    started = time.perf_counter()
    if base.device.type == "cpu":
        keep_freed_memory()
    try:
        with writing(job.output_dir), adapter(base, job.lora, job.seed) as model:
            steps, eval_loss = _fit(model, base, job, train_data, eval_data, progress)
            folder = job.output_dir / "adapter"
            save_adapter(model, folder)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise TrainingError(
            "out of memory while training: try a smaller training.per_device_train_batch_size (with "
            "training.gradient_accumulation_steps to make up for it), training.gradient_checkpointing=true or a "
            "smaller data.max_length",
            reason="out_of_memory",
        ) from error
    finally:
        release_memory()
    return TrainedAdapter(folder, eval_loss, steps, time.perf_counter() - started)


def _fit(
    model: PeftModel,
    base: BaseModel,
    job: TrainingJob,
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
) -> tuple[int, float]:
    """Run the trainer; returns optimiser steps and the final validation loss."""
    checkpoints = job.output_dir / "checkpoints"
    arguments = _arguments(job, base, checkpoints, len(train_data))
    set_seed(job.seed)
    trainer = AdapterTrainer(model, arguments, train_dataset=train_data, eval_dataset=eval_data)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    total = _total_steps(job.training, len(train_data))
    with progress.task("Training", total) as advance:
        trainer.add_callback(MetricsCallback(job.on_metrics, advance, lambda: trainer.trained_tokens))
        trainer.add_callback(HealthCheck(job.training.divergence_factor))
        checkpoint = _newest_checkpoint(checkpoints) if job.training.resume else None
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if measured and measured[-1]["step"] == trainer.state.global_step:
        return trainer.state.global_step, float(measured[-1]["eval_loss"])
    return trainer.state.global_step, float(trainer.evaluate()["eval_loss"])


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: Trainer writes its state last, and may have been killed before."""
    found = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    for state in reversed(found):
        try:
            json.loads(state.read_text("utf-8"))
        except ValueError:
            continue
        return state.parent
    logger.warning("training.resume=true, but there is no checkpoint in %s: starting from the beginning", folder)
    return None


def _steps_per_epoch(config: TrainingConfig, examples: int) -> int:
    batches = math.ceil(examples / config.per_device_train_batch_size)
    return math.ceil(batches / config.gradient_accumulation_steps)


def _total_steps(config: TrainingConfig, examples: int) -> int:
    if config.max_steps > 0:
        return config.max_steps
    return math.ceil(config.num_train_epochs * _steps_per_epoch(config, examples))


def _arguments(job: TrainingJob, base: BaseModel, checkpoints: Path, examples: int) -> TrainingArguments:
    config = job.training
    evals = config.evals_per_epoch
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        # transformers 5 reads a `warmup_steps` below 1 as the ratio.
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optim,
        # transformers' new name for gradient checkpointing.
        activation_checkpointing=config.gradient_checkpointing,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        eval_strategy="steps" if evals else "no",
        eval_steps=max(1, math.ceil(_steps_per_epoch(config, examples) / evals)) if evals else None,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        # A NaN must be seen, not replaced by the average of earlier steps.
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        seed=job.seed,
        data_seed=job.seed,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    _stay_on(arguments, base.device)
    return arguments


def _stay_on(arguments: TrainingArguments, device: torch.device) -> None:
    """Keep Trainer on one device: by itself it takes the first GPU, and splits batches over all of them."""
    arguments._n_gpu = int(device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # The cached property behind `arguments.device`.
        vars(arguments)["_setup_devices"] = device
