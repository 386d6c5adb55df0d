"""What a trial's adapter and the untuned baseline predict for the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import EvaluationSet, Judging, Predictions, predict, predict_baseline
from lorahydra.modeling.lora import load_adapter
from lorahydra.trial.prepare import Prepared
from lorahydra.utils.progress import Progress

__all__ = ["TrialPredictions", "predict_both"]


@dataclass(frozen=True)
class TrialPredictions:
    """What the tuned and the untuned model predicted for the same examples."""

    examples: EvaluationSet
    tuned: Predictions
    baseline: Predictions | None
    """Of the untuned model; None where it was not asked."""
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
        steps: Optimiser steps behind the adapter.
        description: What the progress of the tuned model is called.

    Raises:
        ModelError: The adapter cannot be used.
    """
    base, chat, scorer, settings = prepared.base, prepared.chat, prepared.scorer, config.evaluation
    with load_adapter(base, adapter) as model:
        tuned = predict(
            model,
            base,
            chat,
            examples,
            scorer,
            settings,
            judging=judging,
            progress=progress,
            description=description,
        )
    baseline = None
    if settings.baseline:
        baseline = predict_baseline(base, chat, examples, scorer, settings, judging=judging, progress=progress)
    return TrialPredictions(examples, tuned, baseline, steps)
