"""What a trial's adapter and the untuned baseline predict for the same prompts."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import EvaluationSet, Judging, Predictions
from lorahydra.modeling.compat import attention_of
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.modeling.lora import load_adapter
from lorahydra.trial.prepare import Prepared
from lorahydra.utils.progress import Progress

__all__ = ["TrialPredictions", "predict_both"]

CPU_BATCH = 32
GPU_BATCH = 256
"""On a GPU, a step with a few rows takes as long as one with hundreds."""


@dataclass(frozen=True)
class TrialPredictions:
    """What the tuned and the untuned model predicted for the same examples."""

    examples: EvaluationSet
    tuned: Predictions
    baseline: Predictions | None
    """Predictions of the untuned model; None if it was not asked."""
    steps: int = 0
    """Optimiser steps behind the tuned model; 0 where they are not known."""


def predict_both(
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    adapter: Path,
    judging: Judging,
    progress: Progress,
    *,
    steps: int = 0,
    description: str = "Generating",
) -> TrialPredictions:
    """Load an adapter from its folder, and let it and the untuned model answer the examples.

    Args:
        config: The experiment.
        prepared: Its base model and scorer.
        examples: The prompts and references.
        adapter: Folder in PEFT's format.
        judging: Receives both sets of predictions, the tuned model's first.
        progress: Where to show the progress.
        steps: Optimiser steps that trained the adapter.
        description: Label of the tuned model's progress.

    Raises:
        ModelError: The adapter cannot be used.
    """
    with load_adapter(prepared.base, adapter) as model:
        tuned = _predict(model, config, prepared, examples, judging, progress, description)
    baseline = None
    if config.evaluation.baseline:
        baseline = _predict_baseline(config, prepared, examples, judging, progress)
    return TrialPredictions(examples, tuned, baseline, steps)


def _predict(
    model: PreTrainedModel,
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    judging: Judging,
    progress: Progress,
    description: str,
) -> Predictions:
    """Let `model` answer every prompt, and compare its predictions with the references while the judge is at work."""
    settings, base, chat = config.evaluation, prepared.base, prepared.chat
    started = time.perf_counter()
    tokens = generate(
        model,
        examples.prompts,
        stop=stop_tokens(base.model, chat.end_tokens),
        ends=chat.text_end,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size or (CPU_BATCH if base.device.type == "cpu" else GPU_BATCH),
        progress=progress,
        description=description,
    )
    texts = [chat.answer_text(answer) for answer in tokens]
    generated = time.perf_counter()
    judging.start(texts)
    bertscore = prepared.scorer.score(texts, examples.references)
    finished = time.perf_counter()
    truncated = sum(len(answer) == settings.max_new_tokens for answer in tokens)
    return Predictions(texts, bertscore, truncated, generated - started, finished - generated)


_baselines: dict[object, Predictions] = {}


def _predict_baseline(
    config: ExperimentConfig, prepared: Prepared, examples: EvaluationSet, judging: Judging, progress: Progress
) -> Predictions:
    """The untuned model's predictions, generated once per process for the same model, examples and settings."""
    base = prepared.base
    key = (
        *(base.source, base.digest, str(base.device), base.dtype, attention_of(base.model)),
        *(examples.digest, dataclasses.astuple(config.evaluation)),
    )
    if key in _baselines:
        judging.start(_baselines[key].texts)
    else:
        description = "Generating (untuned)"
        _baselines[key] = _predict(base.model, config, prepared, examples, judging, progress, description)
    return _baselines[key]
