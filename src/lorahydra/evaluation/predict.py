"""What a model predicts for every prompt of a split, and how close that is to the references."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lorahydra.config.schema import EvaluationConfig
from lorahydra.data import ChatFormat
from lorahydra.evaluation.examples import EvaluationSet
from lorahydra.evaluation.judging import Judging
from lorahydra.metrics.bertscore import BertScorer, BertScores
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.compat import attention_of
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.names import Score
from lorahydra.utils.progress import Progress

__all__ = ["Predictions", "predict", "predict_baseline"]

CPU_BATCH = 32
GPU_BATCH = 256
"""A GPU takes as long for a step of a few rows as for one of hundreds."""


@dataclass(frozen=True)
class Predictions:
    """What a model generated for every prompt of a set, with the scores that need no judge; in the set's order."""

    texts: list[str]
    bertscore: BertScores
    truncated: int
    """How many of them `max_new_tokens` cut short."""
    generate_seconds: float
    bertscore_seconds: float

    @property
    def bertscore_f1(self) -> float:
        """Mean BERTScore F1."""
        return _mean(self.bertscore.f1)

    @property
    def means(self) -> dict[Score, float]:
        """Means and counts over the predictions."""
        return {
            Score.BERTSCORE_PRECISION: _mean(self.bertscore.precision),
            Score.BERTSCORE_RECALL: _mean(self.bertscore.recall),
            Score.BERTSCORE_F1: self.bertscore_f1,
            Score.TRUNCATED: float(self.truncated),
            Score.LENGTH: _mean([len(text) for text in self.texts]),
        }


def predict(
    model: PreTrainedModel,
    base: BaseModel,
    chat: ChatFormat,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    judging: Judging,
    progress: Progress | None = None,
    description: str = "Generating",
) -> Predictions:
    """Let `model` answer every prompt, and compare its predictions with the references.

    Args:
        model: The base model itself, or the base model with an adapter attached.
        base: The base model.
        chat: The chat format, which says what ends an answer.
        examples: The prompts and references.
        scorer: BERTScore.
        config: Generation and scoring settings.
        judging: Receives the predictions as soon as they exist, so that the judge can work meanwhile.
        progress: Where to show the progress.
        description: What the progress is called.
    """
    started = time.perf_counter()
    tokens = generate(
        model,
        examples.prompts,
        stop=stop_tokens(base.model, chat.end_tokens),
        ends=chat.text_end,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size or (CPU_BATCH if base.device.type == "cpu" else GPU_BATCH),
        progress=progress,
        description=description,
    )
    texts = [chat.answer_text(answer) for answer in tokens]
    generated = time.perf_counter()
    judging.start(texts)
    bertscore = scorer.score(texts, examples.references)
    finished = time.perf_counter()
    truncated = sum(len(answer) == config.max_new_tokens for answer in tokens)
    return Predictions(texts, bertscore, truncated, generated - started, finished - generated)


_baselines: dict[object, Predictions] = {}


def predict_baseline(
    base: BaseModel,
    chat: ChatFormat,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    judging: Judging,
    progress: Progress | None = None,
) -> Predictions:
    """The untuned model's predictions, generated once per process for the same model, examples and settings."""
    key = (
        base.source,
        base.digest,
        str(base.device),
        base.dtype,
        attention_of(base.model),
        examples.digest,
        dataclasses.astuple(config),
    )
    if key in _baselines:
        judging.start(_baselines[key].texts)
    else:
        _baselines[key] = predict(
            base.model,
            base,
            chat,
            examples,
            scorer,
            config,
            judging=judging,
            progress=progress,
            description="Generating (untuned)",
        )
    return _baselines[key]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
