"""Answers every prompt of a split, scores the answers and sums them up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lorahydra.config.schema import EvaluationConfig
from lorahydra.evaluation.bertscore import BertScorer, BertScores
from lorahydra.evaluation.generation import generate, stop_tokens
from lorahydra.evaluation.scoring import ExampleScores, Interval, combined_interval
from lorahydra.modeling.base import BaseModel
from lorahydra.names import scored
from lorahydra.progress import Progress

__all__ = ["Evaluation", "EvaluationSet", "evaluate", "evaluate_baseline"]


@dataclass(frozen=True)
class EvaluationSet:
    """The examples that answers are scored on."""

    prompts: Sequence[Sequence[int]]
    """Token ids of each prompt, as the model is asked."""
    texts: Sequence[str]
    """Each prompt for people to read."""
    references: Sequence[str]
    """What a good answer is."""
    digest: str
    """Digest of the content and of how it became prompts."""


@dataclass(frozen=True)
class Evaluation:
    """Answers and their scores, in the order of the set."""

    answers: list[str]
    bertscore: BertScores
    combined: Interval
    """`combined` with its 95 % interval."""
    cut_answers: int
    """Answers that `max_new_tokens` cut short."""
    generate_seconds: float
    bertscore_seconds: float

    @property
    def means(self) -> dict[str, float]:
        """Mean scores by the name they have behind a metric's prefix."""
        return {
            "bertscore_precision": _mean(self.bertscore.precision),
            "bertscore_recall": _mean(self.bertscore.recall),
            "bertscore_f1": _mean(self.bertscore.f1),
            "combined": self.combined.mean,
            "combined_low": self.combined.low,
            "combined_high": self.combined.high,
        }

    @property
    def bertscore_f1(self) -> float:
        """Mean BERTScore F1."""
        return _mean(self.bertscore.f1)

    @property
    def example_scores(self) -> ExampleScores:
        """The scores of each example, for comparing two evaluations."""
        return ExampleScores(self.bertscore.f1, None)

    def metrics(self, prefix: str) -> dict[str, float]:
        """The means, and how many answers were cut, as metrics `prefix/…`."""
        values = self.means | {"cut_answers": float(self.cut_answers)}
        return {scored(prefix, name): value for name, value in values.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def evaluate(
    model: PreTrainedModel,
    base: BaseModel,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    description: str = "Generating",
) -> Evaluation:
    """Let `model` answer every prompt and score the answers.

    Args:
        model: The base model itself, or it with an adapter attached.
        base: The base model's tokenizer, for the text of answers and their stop tokens.
        examples: The prompts and references.
        scorer: BERTScore.
        config: Generation and scoring settings.
        seed: Seeds the bootstrap.
        progress: Where to show the progress.
        description: What the progress is called.
    """
    started = time.perf_counter()
    tokens = generate(
        model,
        examples.prompts,
        stop=stop_tokens(base.model, base.tokenizer),
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=progress,
        description=description,
    )
    answers = [base.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in tokens]
    generated = time.perf_counter()
    bertscore = scorer.score(answers, examples.references)
    finished = time.perf_counter()
    cut = sum(len(answer) == config.max_new_tokens for answer in tokens)
    return Evaluation(
        answers=answers,
        bertscore=bertscore,
        combined=combined_interval(ExampleScores(bertscore.f1, None), config, seed),
        cut_answers=cut,
        generate_seconds=generated - started,
        bertscore_seconds=finished - generated,
    )


_baselines: dict[object, Evaluation] = {}


def evaluate_baseline(
    base: BaseModel,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the untuned model, once per process for the same model, examples and settings."""
    key = (
        base.source,
        base.digest,
        str(base.device),
        base.dtype,
        examples.digest,
        seed,
        dataclasses.astuple(config),
    )
    if key not in _baselines:
        _baselines[key] = evaluate(
            base.model,
            base,
            examples,
            scorer,
            config,
            seed=seed,
            progress=progress,
            description="Generating (untuned)",
        )
    return _baselines[key]
