"""The training engine: jobs in, adapters on disk and their metrics out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.errors import TrainingError, clear_frames
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.lora import peft_config
from lorahydra.modeling.memory import OutOfMemoryError, keep_freed_memory, release_memory, with_a_batch_that_fits
from lorahydra.modeling.precision import matmul_precision
from lorahydra.modeling.single import OnlyAloneError, attached
from lorahydra.names import EVAL, Metric, Score, scored
from lorahydra.training.adapter_state import AdapterState
from lorahydra.training.checkpoints import TrainingFolder, training_settings
from lorahydra.training.jobs import RaceOf, TokenizedExamples, TrainedAdapter, TrainingJob, total_steps
from lorahydra.training.loop import fit
from lorahydra.training.optimizers import make_optimizer
from lorahydra.training.reference import with_reference
from lorahydra.utils.files import writing
from lorahydra.utils.progress import Progress

logger = logging.getLogger(__name__)

__all__ = ["check_settings", "train", "train_pack"]

MAY_DIFFER = {
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay", "max_grad_norm", "optim", "extra"),
    *("logging_steps", "save_steps", "divergence_factor", "keep", "early_stopping_patience"),
    *("dpo_beta", "dpo_label_smoothing"),
}
"""Training settings that may differ between the adapters of a pack."""
OUT_OF_MEMORY = (
    "out of memory while training: try a smaller training.per_device_train_batch_size (with "
    "training.gradient_accumulation_steps to make up for it), training.gradient_checkpointing=true or a smaller "
    "data.max_length"
)

Outcome = TrainedAdapter | Exception


def train(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
) -> list[TrainedAdapter]:
    """Train one adapter per job on the shared base model, one after the other.

    Raises:
        ConfigError: A job resumes a training that was made with other settings.
        TrainingError: A job's loss became NaN (`nan`) or diverged (`diverged`), or memory ran out (`out_of_memory`).
        OutputError: Results cannot be written.
    """
    trained = []
    for job in jobs:
        [outcome] = train_pack(base, [job], train_data, eval_data, progress)
        if isinstance(outcome, Exception):
            raise outcome
        trained.append(outcome)
    return trained


def train_pack(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress | None = None,
    race_of: RaceOf | None = None,
) -> list[Outcome]:
    """Train the adapters of several jobs side by side, each as if it were alone.

    Only jobs with the same seed, layers, batches and epochs share a pack; packs are trained one after the other. Jobs
    that can only be trained alone are trained one by one. If memory runs out, jobs begin again in smaller packs.

    Args:
        base: The base model, which is the same afterwards, bit for bit.
        jobs: The adapters to be trained.
        train_data: The examples that all are trained on.
        eval_data: The examples that all are validated on.
        progress: Where to show the progress.
        race_of: Ends adapters that are behind the others of their pack.

    Returns:
        For each job its adapter, or the error that ended it: its loss became NaN or diverged, a study pruned it, its
        settings do not fit the base model or a checkpoint, its results cannot be written, or memory does not suffice
        even for it alone. Such an error does not end the others.
    """
    if base.device.type == "cpu":
        keep_freed_memory()
    elif base.device.type == "cuda":
        torch.cuda.set_device(base.device)
    outcomes: dict[int, Outcome] = {}

    def together(jobs: Sequence[TrainingJob]) -> list[Outcome]:
        return _train_together(base, jobs, train_data, eval_data, progress or Progress(), race_of)

    try:
        for pack in _packs(jobs):
            trained = _train_alike([jobs[index] for index in pack], together)
            outcomes |= dict(zip(pack, trained, strict=True))
    finally:
        release_memory()
    return [outcomes[index] for index in range(len(jobs))]


def check_settings(lora: LoraConfig, training: TrainingConfig) -> None:
    """Check what is passed on to PEFT and the optimiser, before anything is loaded.

    Raises:
        ConfigError: They do not take a setting, or its value.
    """
    peft_config(lora)
    shapes = [(2, 2), (2,)] if lora.use_dora else [(2, 2)]
    make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]}], training)


def _packs(jobs: Sequence[TrainingJob]) -> list[list[int]]:
    """Positions of the jobs, in groups that can share a pack."""
    packs: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        shared = {name: value for name, value in vars(job.training).items() if name not in MAY_DIFFER}
        # A job with DoRA or PiSSA is trained alone, and must not keep the others from sharing a pack.
        kind = (
            job.seed,
            job.lora.target_modules,
            job.lora.use_dora,
            job.lora.init_lora_weights,
            job.lora.extra,
            shared,
        )
        packs.setdefault(repr(kind if not job.training.resume else (index, kind)), []).append(index)
    return list(packs.values())


def _train_alike(
    jobs: Sequence[TrainingJob], together: Callable[[Sequence[TrainingJob]], list[Outcome]]
) -> list[Outcome]:
    """Train jobs that can share a pack, in packs as large as memory allows; after an error, alone, to find its job."""
    outcomes: list[Outcome] = []

    def train_the_rest(side_by_side: int) -> None:
        while rest := jobs[len(outcomes) :]:
            outcomes.extend(together(rest[:side_by_side]))

    side_by_side = len(jobs)
    while len(outcomes) < len(jobs):
        try:
            with_a_batch_that_fits(train_the_rest, side_by_side)
        except OnlyAloneError:
            side_by_side = 1
        except OutOfMemoryError:
            outcomes.append(TrainingError(OUT_OF_MEMORY, reason="out_of_memory"))
            side_by_side = 1
        except Exception as error:
            clear_frames(error)  # they hold the memory of the pack
            if side_by_side == 1 or len(outcomes) == len(jobs) - 1:
                outcomes.append(error)
            side_by_side = 1
    return outcomes


def _train_together(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    train_data: TokenizedExamples,
    eval_data: TokenizedExamples,
    progress: Progress,
    race_of: RaceOf | None,
) -> list[Outcome]:
    digests = {"training": train_data.digest, "validation": eval_data.digest}
    folders = [TrainingFolder(job.output_dir, training_settings(base, job, digests)) for job in jobs]
    resume, total = jobs[0].training.resume, total_steps(jobs[0].training, len(train_data))
    if resume and (ended := folders[0].ended()) is not None:
        logger.info("The training in %s has ended after %d steps: it is not repeated", ended.folder, ended.steps)
        metrics = {scored(EVAL, Score.LOSS): ended.eval_loss, Metric.EVAL_BEST_STEP: ended.best_step}
        jobs[0].on_metrics(metrics, ended.steps)
        return [ended]
    if not resume:
        for folder in folders:
            with writing(folder.path):
                folder.clear()
    if jobs[0].training.method == "dpo":
        referring = partial(with_reference, base, precision=jobs[0].training.matmul_precision, progress=progress)
        train_data, eval_data = referring(train_data, training=True), referring(eval_data, training=False)
    with attached(base, [job.lora for job in jobs], jobs[0].seed) as pack:
        pairs = enumerate(zip(jobs, folders, strict=True))
        adapters = [AdapterState(job, folder, pack, slot, total) for slot, (job, folder) in pairs]
        steps_done = adapters[0].resume() if resume else 0
        race = None if race_of is None else race_of(jobs)
        with matmul_precision(base, jobs[0].training.matmul_precision):
            fit(base, pack, adapters, train_data, eval_data, progress, steps_done, race)
    return [adapter.outcome for adapter in adapters if adapter.outcome is not None]
