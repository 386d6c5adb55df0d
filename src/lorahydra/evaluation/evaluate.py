"""Answers every prompt of a split, scores the answers and sums them up."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lorahydra.config.schema import EvaluationConfig
from lorahydra.data import ChatFormat
from lorahydra.errors import JudgeCoverageError
from lorahydra.evaluation.examples import EvaluationSet
from lorahydra.evaluation.judging import Judging, Verdicts
from lorahydra.evaluation.scoring import ExampleScores, Interval, combined_interval
from lorahydra.metrics.bertscore import BertScorer, BertScores
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.names import Score
from lorahydra.utils.progress import Progress

__all__ = ["Answers", "Evaluation", "answer", "answer_untuned", "evaluate", "judged_alike"]

logger = logging.getLogger(__name__)

CPU_BATCH = 32
GPU_BATCH = 256
"""A GPU takes as long for a step of a few rows as for one of hundreds."""


@dataclass(frozen=True)
class Answers:
    """What a model answered to every prompt of a set, with the scores that need no judge; in the set's order."""

    texts: list[str]
    bertscore: BertScores
    cut: int
    """Answers that `max_new_tokens` cut short."""
    generate_seconds: float
    bertscore_seconds: float

    @property
    def bertscore_f1(self) -> float:
        """Mean BERTScore F1."""
        return _mean(self.bertscore.f1)

    @property
    def means(self) -> dict[Score, float]:
        """Means and counts over the answers."""
        return {
            Score.BERTSCORE_PRECISION: _mean(self.bertscore.precision),
            Score.BERTSCORE_RECALL: _mean(self.bertscore.recall),
            Score.BERTSCORE_F1: self.bertscore_f1,
            Score.CUT_ANSWERS: float(self.cut),
            Score.ANSWER_LENGTH: _mean([len(text) for text in self.texts]),
        }


@dataclass(frozen=True)
class Evaluation:
    """Answers with all their scores."""

    answers: Answers
    verdicts: Verdicts | None
    """What the judge said; None without a judge."""
    combined: Interval
    """`combined` with its 95 % interval."""

    @property
    def example_scores(self) -> ExampleScores:
        """The scores of each example, for comparing two evaluations."""
        return _example_scores(self.answers, self.verdicts)

    @property
    def means(self) -> dict[Score, float]:
        """Mean scores by the name they have behind a metric's prefix."""
        judged = self.verdicts.means if self.verdicts is not None else {}
        return {
            **self.answers.means,
            **judged,
            Score.COMBINED: self.combined.mean,
            Score.COMBINED_LOW: self.combined.low,
            Score.COMBINED_HIGH: self.combined.high,
        }


def evaluate(answers: Answers, verdicts: Verdicts | None, config: EvaluationConfig, seed: int) -> Evaluation:
    """Combine the scores of answers.

    Args:
        answers: From `answer`.
        verdicts: From the judge; None without one.
        config: The weights.
        seed: Seeds the bootstrap.

    Raises:
        LorahydraError: Too few of the chosen examples got a verdict.
    """
    if verdicts is not None:
        verdicts.check_coverage()
    return Evaluation(answers, verdicts, combined_interval(_example_scores(answers, verdicts), config, seed))


def judged_alike(evaluations: Sequence[Evaluation], config: EvaluationConfig, seed: int) -> list[Evaluation]:
    """The evaluations, with means over the examples that have a verdict in each of them.

    A judge does not fail at random: a filter stops the worst answers. Where one of several is without a verdict, the
    others' on this example would make the means those of different examples, and the worst answer would gain by it.

    Args:
        evaluations: Of answers to the same prompts.
        config: The weights.
        seed: Seeds the bootstrap.

    Raises:
        JudgeCoverageError: No example has a verdict in each of them.
    """
    judges = [scores for each in evaluations if (scores := each.example_scores.judge) is not None]
    examples = list(zip(*judges, strict=True))
    if judges and all(None in scores for scores in examples):
        raise JudgeCoverageError("there is no example with a verdict on each of the answers that are compared")
    unequal = frozenset(n for n, scores in enumerate(examples) if 0 < scores.count(None) < len(scores))
    if not unequal:
        return list(evaluations)
    logger.warning(
        "%d examples are in none of the judge's means: only some of the answers that are compared have a verdict",
        len(unequal),
    )
    return [_without(each, unequal, config, seed) for each in evaluations]


def _without(evaluation: Evaluation, left_out: frozenset[int], config: EvaluationConfig, seed: int) -> Evaluation:
    if evaluation.verdicts is None:
        return evaluation
    verdicts = dataclasses.replace(evaluation.verdicts, left_out=left_out)
    combined = combined_interval(_example_scores(evaluation.answers, verdicts), config, seed)
    return Evaluation(evaluation.answers, verdicts, combined)


def _example_scores(answers: Answers, verdicts: Verdicts | None) -> ExampleScores:
    judge = None if verdicts is None else verdicts.scores
    return ExampleScores(answers.bertscore.f1, judge, answers.bertscore.lowest)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def answer(
    model: PreTrainedModel,
    base: BaseModel,
    chat: ChatFormat,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
    description: str = "Generating",
) -> Answers:
    """Let `model` answer every prompt and compare the answers with the references.

    Args:
        model: The base model itself, or it with an adapter attached.
        base: The base model.
        chat: The chat format, which says what ends an answer.
        examples: The prompts and references.
        scorer: BERTScore.
        config: Generation and scoring settings.
        judging: Told of the answers as soon as they are there, so that the judge can work meanwhile.
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
    if judging is not None:
        judging.start(texts)
    bertscore = scorer.score(texts, examples.references)
    finished = time.perf_counter()
    cut = sum(len(answer) == config.max_new_tokens for answer in tokens)
    return Answers(texts, bertscore, cut, generated - started, finished - generated)


_baselines: dict[object, Answers] = {}


def answer_untuned(
    base: BaseModel,
    chat: ChatFormat,
    examples: EvaluationSet,
    scorer: BertScorer,
    config: EvaluationConfig,
    *,
    judging: Judging | None = None,
    progress: Progress | None = None,
) -> Answers:
    """The answers of the untuned model, made once per process for the same model, examples and settings."""
    key = (
        base.source,
        base.digest,
        str(base.device),
        base.dtype,
        base.model.config._attn_implementation,
        examples.digest,
        dataclasses.astuple(config),
    )
    if key not in _baselines:
        _baselines[key] = answer(
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
    elif judging is not None:
        judging.start(_baselines[key].texts)
    return _baselines[key]
