"""The training engine: jobs in, adapters on disk and their metrics out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, TrainingArguments, set_seed

from lorahydra.errors import TrainingError
from lorahydra.modeling.adapters import adapter, save_adapter
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.memory import keep_freed_memory, ran_out_of_memory, release_memory
from lorahydra.names import ADAPTER_DIR, CHECKPOINTS_DIR, EVAL, Score, scored
from lorahydra.progress import Progress
from lorahydra.storage import writing
from lorahydra.training.jobs import TokenizedExamples, TrainedAdapter, TrainingJob, steps_per_epoch, total_steps
from lorahydra.training.resuming import (
    Ended,
    Settings,
    ended_training,
    forget,
    newest_checkpoint,
    settings_of,
    write_ended,
)
from lorahydra.training.trainer import AdapterTrainer, HealthCheck, MetricsCallback

logger = logging.getLogger(__name__)

__all__ = ["train"]


def train(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
) -> list[TrainedAdapter]:
    """Train one adapter per job on the shared base model, which is the same afterwards, bit for bit.

    Raises:
        ConfigError: A job is to go on from what was made with other settings.
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
    digests = {"training": train_data.digest, "validation": eval_data.digest}
    settings = settings_of(base, job.lora, job.training, job.seed, digests)
    folder = job.output_dir / ADAPTER_DIR
    if job.training.resume:
        ended = ended_training(job.output_dir, settings)
        if ended is not None:
            logger.info("The training in %s has ended after %d steps: it is not repeated", folder, ended.steps)
            job.on_metrics({scored(EVAL, Score.LOSS): ended.eval_loss}, ended.steps)
            return TrainedAdapter(folder, **vars(ended))
    if base.device.type == "cpu":
        keep_freed_memory()
    try:
        with writing(job.output_dir), adapter(base, job.lora, job.seed) as model:
            if not job.training.resume:
                forget(job.output_dir)
            steps, eval_loss = _fit(model, base, job, settings, train_data, eval_data, progress)
            save_adapter(model, folder)
            ended = Ended(eval_loss, steps, time.perf_counter() - started)
            write_ended(job.output_dir, settings, ended)
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
    return TrainedAdapter(folder, **vars(ended))


def _fit(
    model: PeftModel,
    base: BaseModel,
    job: TrainingJob,
    settings: Settings,
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
) -> tuple[int, float]:
    """Run the trainer; returns optimiser steps and the final validation loss."""
    checkpoint = newest_checkpoint(job.output_dir, settings) if job.training.resume else None
    arguments = _arguments(job, base, job.output_dir / CHECKPOINTS_DIR, len(train_data))
    set_seed(job.seed)
    trainer = AdapterTrainer(model, arguments, settings, train_dataset=train_data, eval_dataset=eval_data)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    total = total_steps(job.training, len(train_data))
    with progress.task("Training", total) as advance:
        trainer.add_callback(MetricsCallback(job.on_metrics, advance, lambda: trainer.trained_tokens))
        trainer.add_callback(HealthCheck(job.training.divergence_factor))
        if checkpoint is None or not trainer.take_if_ended(checkpoint, total):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if measured and measured[-1]["step"] == trainer.state.global_step:
        return trainer.state.global_step, float(measured[-1]["eval_loss"])
    return trainer.state.global_step, float(trainer.evaluate()["eval_loss"])


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
        eval_steps=max(1, math.ceil(steps_per_epoch(config, examples) / evals)) if evals else None,
        logging_steps=config.logging_steps,
        logging_first_step=True,
        # A NaN must be seen, not replaced by the average of earlier steps.
        logging_nan_inf_filter=False,
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        # The one before is taken where the process died while it saved.
        save_total_limit=2,
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
