"""The training engine: jobs in, adapters on disk and their metrics out."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from lorahydra.errors import LorahydraError, TrainingError
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.memory import keep_freed_memory, ran_out_of_memory, release_memory
from lorahydra.modeling.single import attached
from lorahydra.names import ADAPTER_DIR, EVAL, Metric, Score, scored
from lorahydra.training.adapter_state import AdapterState
from lorahydra.training.checkpoints import Settings, ended_training, forget, settings_of
from lorahydra.training.jobs import TokenizedExamples, TrainedAdapter, TrainingJob, total_steps
from lorahydra.training.loop import fit
from lorahydra.utils.files import writing
from lorahydra.utils.progress import Progress

logger = logging.getLogger(__name__)

__all__ = ["train", "train_pack"]

OWN = {
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "optim"),
    *("logging_steps", "save_steps", "divergence_factor", "keep", "early_stopping_patience"),
}
"""Settings of the training in which the adapters of a pack may differ."""

Outcome = TrainedAdapter | LorahydraError


def train(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
) -> list[TrainedAdapter]:
    """Train one adapter per job on the shared base model, one after the other.

    Raises:
        ConfigError: A job is to go on from what was made with other settings.
        TrainingError: A job's loss became NaN (`nan`), ran away (`diverged`) or memory ran out (`out_of_memory`).
        OutputError: Results cannot be written.
    """
    trained = []
    for job in jobs:
        [outcome] = train_pack(base, [job], train_data, eval_data, progress)
        if isinstance(outcome, LorahydraError):
            raise outcome
        trained.append(outcome)
    return trained


def train_pack(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Train the adapters of several jobs side by side, each as if it were alone.

    Where memory runs out, the jobs begin again in two packs.

    Args:
        base: The base model, which is the same afterwards, bit for bit.
        jobs: With the same seed, layers, batches and epochs. Only one alone can go on from a checkpoint.
        train_data: What all are trained on.
        eval_data: What all are validated on.
        progress: Where progress is shown.

    Returns:
        For each job its adapter, or the error that ended it (a loss that became NaN or ran away, a study that pruned
        it, results that cannot be written); the others went on.

    Raises:
        ConfigError: A job is to go on from what was made with other settings.
        ModelError: A job's adapter does not fit the base model.
        ValueError: The jobs cannot share a pack.
    """
    _check_alike(jobs)
    if base.device.type == "cpu":
        keep_freed_memory()
    elif base.device.type == "cuda":
        torch.cuda.set_device(base.device)
    try:
        return _train_pack(base, jobs, train_data, eval_data, progress or Progress())
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
    finally:
        release_memory()
    if len(jobs) > 1:
        half = len(jobs) // 2
        logger.warning("Out of memory with %d adapters side by side: they begin again in two packs", len(jobs))
        halves = [train_pack(base, part, train_data, eval_data, progress) for part in (jobs[:half], jobs[half:])]
        return [*halves[0], *halves[1]]
    message = (
        "out of memory while training: try a smaller training.per_device_train_batch_size (with "
        "training.gradient_accumulation_steps to make up for it), training.gradient_checkpointing=true or a "
        "smaller data.max_length"
    )
    return [TrainingError(message, reason="out_of_memory")]


def _check_alike(jobs: Sequence[TrainingJob]) -> None:
    shared = [
        (job.seed, job.lora.target_modules, {k: v for k, v in vars(job.training).items() if k not in OWN})
        for job in jobs
    ]
    if any(settings != shared[0] for settings in shared):
        raise ValueError("jobs with other seeds, layers, batches or epochs cannot be trained side by side")
    if len(jobs) > 1 and jobs[0].training.resume:
        raise ValueError("only a job alone can go on from a checkpoint")


def _train_pack(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
) -> list[Outcome]:
    digests = {"training": train_data.digest, "validation": eval_data.digest}
    settings = [settings_of(base, job.lora, job.training, job.seed, digests) for job in jobs]
    resume, total = jobs[0].training.resume, total_steps(jobs[0].training, len(train_data))
    if resume and (ended := _ended(jobs[0], settings[0])) is not None:
        return [ended]
    if not resume:
        for job in jobs:
            with writing(job.output_dir):
                forget(job.output_dir)
    with attached(base, [job.lora for job in jobs], jobs[0].seed) as pack:
        adapters = [AdapterState(job, settings[slot], pack, slot, total) for slot, job in enumerate(jobs)]
        done = adapters[0].resume() if resume else 0
        fit(base, pack, adapters, train_data, eval_data, progress, done)
    return [adapter.outcome for adapter in adapters if adapter.outcome is not None]


def _ended(job: TrainingJob, settings: Settings) -> TrainedAdapter | None:
    """What a training that has ended before has left."""
    ended = ended_training(job.output_dir, settings)
    if ended is None:
        return None
    folder = job.output_dir / ADAPTER_DIR
    logger.info("The training in %s has ended after %d steps: it is not repeated", folder, ended.steps)
    job.on_metrics({scored(EVAL, Score.LOSS): ended.eval_loss, Metric.EVAL_BEST_STEP: ended.best_step}, ended.steps)
    return TrainedAdapter(folder, **vars(ended))
