"""What a trial's adapter and the untuned baseline predict for the same prompts."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import MetricError
from lorahydra.evaluation import EvaluationSet, Judging, Predictions
from lorahydra.metrics.loading import MetricScores
from lorahydra.modeling.compat import attention_of
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.modeling.saved_pack import load_pack
from lorahydra.modeling.single import OnlyAloneError
from lorahydra.names import BASELINE, FEW_SHOT
from lorahydra.trial.few_shot import with_shots
from lorahydra.trial.prepare import Prepared
from lorahydra.utils.progress import Progress

__all__ = ["Answers", "TrialPredictions", "answer_together", "predict_both"]

logger = logging.getLogger(__name__)

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
    few_shot: Predictions | None = None
    """The same with training examples in its prompts."""
    steps: int = 0
    """Optimiser steps behind the tuned model; 0 where they are not known."""

    @property
    def untuned(self) -> dict[str, Predictions]:
        """Those of the untuned model by the prefix of their metrics, in the order in which they are judged."""
        sides = {BASELINE: self.baseline, FEW_SHOT: self.few_shot}
        return {prefix: one for prefix, one in sides.items() if one is not None}


@dataclass(frozen=True)
class Answers:
    """What a model answered to every prompt of a set."""

    tokens: list[list[int]]
    seconds: float
    """Time of generating them; for an adapter of a pack, its share."""


def predict_both(
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    adapter: Path,
    judging: Judging,
    progress: Progress,
    *,
    answers: Answers | None = None,
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
        answers: The adapter's answers, if it has answered already.
        steps: Optimiser steps that trained the adapter.
        description: Label of the tuned model's progress.

    Raises:
        ModelError: The adapter cannot be used.
    """
    if answers is None:
        [answers] = answer_together(config, prepared, examples, [adapter], progress, description)
    tuned = _predictions(answers, config, prepared, examples, judging)
    baseline = few_shot = None
    if config.evaluation.baseline:
        baseline = _predict_untuned(config, prepared, examples, judging, progress, "Generating (untuned)")
    if config.evaluation.few_shot:
        prompted = with_shots(config, prepared, examples)
        few_shot = _predict_untuned(config, prepared, prompted, judging, progress, "Generating (few-shot)")
    return TrialPredictions(examples, tuned, baseline, few_shot, steps)


def answer_together(
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    adapters: Sequence[Path],
    progress: Progress,
    description: str = "Generating",
) -> list[Answers]:
    """Load adapters side by side, and let them answer the examples; each answers as it does alone.

    Args:
        config: The experiment; of several, all have the same settings for evaluation.
        prepared: Its base model.
        examples: The prompts.
        adapters: Folders in PEFT's format.
        progress: Where to show the progress.
        description: Its label.

    Returns:
        The answers of each adapter.

    Raises:
        ModelError: An adapter cannot be used.
        OnlyAloneError: The adapters are not alike.
    """
    if len(adapters) > _batch_size(config, prepared):
        raise OnlyAloneError("evaluation.batch_size allows fewer answers together")
    with load_pack(prepared.base, adapters) as model:
        started = time.perf_counter()
        tokens = _generate(model, len(adapters), config, prepared, examples, progress, description)
        seconds = (time.perf_counter() - started) / len(adapters)
    return [Answers(answers, seconds) for answers in tokens]


def _generate(
    model: PreTrainedModel,
    slots: int,
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    progress: Progress,
    description: str,
) -> list[list[list[int]]]:
    base, chat = prepared.base, prepared.chat
    return generate(
        model,
        examples.prompts,
        slots=slots,
        stop=stop_tokens(base.model, chat.end_tokens),
        ends=chat.text_end,
        max_new_tokens=config.evaluation.max_new_tokens,
        batch_size=_batch_size(config, prepared),
        progress=progress,
        description=description,
    )


def _batch_size(config: ExperimentConfig, prepared: Prepared) -> int:
    return config.evaluation.batch_size or (CPU_BATCH if prepared.base.device.type == "cpu" else GPU_BATCH)


def _predictions(
    answers: Answers, config: ExperimentConfig, prepared: Prepared, examples: EvaluationSet, judging: Judging
) -> Predictions:
    """Compare answers with the references while the judge is at work."""
    texts = [prepared.chat.answer_text(answer) for answer in answers.tokens]
    judging.start(texts)
    started = time.perf_counter()
    bertscore = prepared.scorer.score(texts, examples.references)
    seconds = time.perf_counter() - started
    found = _metric_scores(config, prepared, examples, texts)
    truncated = sum(len(answer) == config.evaluation.max_new_tokens for answer in answers.tokens)
    return Predictions(
        texts,
        bertscore,
        truncated,
        answers.seconds,
        seconds,
        {name: scores.examples for name, scores in found.items()},
        {name: total for scores in found.values() for name, total in scores.totals.items()},
    )


def _metric_scores(
    config: ExperimentConfig, prepared: Prepared, examples: EvaluationSet, texts: Sequence[str]
) -> dict[str, MetricScores]:
    """The scores of the chosen metrics; one that fails is left out unless it counts in `combined`.

    Raises:
        MetricError: A metric that counts fails.
    """
    found = {}
    for name, metric in prepared.metrics.items():
        try:
            found[name] = metric.score(examples.texts, examples.references, texts)
        except MetricError as error:
            if config.evaluation.weights.get(name):
                raise
            logger.warning("%s; it does not count in combined and is left out", error)
    return found


_baselines: dict[object, Predictions] = {}


def _predict_untuned(
    config: ExperimentConfig,
    prepared: Prepared,
    examples: EvaluationSet,
    judging: Judging,
    progress: Progress,
    description: str,
) -> Predictions:
    """The untuned model's predictions, generated once per process for the same model, examples and settings."""
    base = prepared.base
    key = (
        *(base.source, base.digest, str(base.device), base.dtype, attention_of(base.model)),
        *(examples.digest, repr((dataclasses.astuple(config.evaluation), config.metrics))),
    )
    if key in _baselines:
        judging.start(_baselines[key].texts)
    else:
        started = time.perf_counter()
        [tokens] = _generate(base.model, 1, config, prepared, examples, progress, description)
        answers = Answers(tokens, time.perf_counter() - started)
        _baselines[key] = _predictions(answers, config, prepared, examples, judging)
    return _baselines[key]
