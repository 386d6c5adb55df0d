"""Decides which trial of a study wins, from the scores that each trial has on every validation example.

The scores are in the predictions tables of the trials' MLflow runs, so trials of other machines count as well.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorahydra.config.schema import EvaluationConfig, ExperimentConfig
from lorahydra.config.search import OBJECTIVES_OF_EXAMPLES
from lorahydra.errors import StoreUnavailableError, TrackingError
from lorahydra.evaluation.choosing import ENOUGH, Comparison, compare
from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.scoring import weighted
from lorahydra.evaluation.seed_noise import allowing_for_few, seed_variance, with_unseen_noise
from lorahydra.names import ADAPTER_DIR, BERTSCORE, PREDICTIONS_FILE, PredictionColumn, Score, score_column
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.study_run import StudyRun
from lorahydra.sweep.study_trial import adapter_bytes
from lorahydra.sweep.trial_record import RaceScore, TrialRecord
from lorahydra.tracking import patiently, read_text

__all__ = ["ScoreTable", "decide", "decide_settings", "read_scores", "score_tables"]

logger = logging.getLogger("lorahydra.sweep")


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one trial on each example."""

    texts: list[tuple[Any, Any]]
    """Prompt and reference of each."""
    metrics: Mapping[str, list[float]]
    """By the name of each metric that counts in `combined`; BERTScore's is its F1."""
    judge: Sequence[float | None]
    """The judge's, 0…100; None without a verdict."""
    final: RaceScore | None = None
    """The means, if the trial was left at the end of a race."""


def score_tables(run: StudyRun, complete: Sequence[TrialRecord], best: TrialRecord) -> dict[int, ScoreTable] | None:
    """The scores of all trials with the examples of the best one, by number.

    Returns:
        None if the objective is not a mean over examples, or if the trials cannot be compared.
    """
    if len(run.objectives) > 1 or run.objectives[0] not in OBJECTIVES_OF_EXAMPLES:
        return None
    groups = {name.lstrip("+").partition(".")[0] for record in complete for name in record.params}
    if groups & {"judge", "evaluation", "seed"}:
        logger.warning("The search decides how trials are scored, so their scores on the examples cannot be compared")
        return None
    reference = read_scores(run.config, best.run_id)
    if reference is None:
        logger.warning("The scores of trial %d cannot be read, so P(best) is not known", best.number)
        return None
    found, left_out = {}, []
    for record in complete:
        each = reference if record is best else read_scores(run.config, record.run_id)
        if each is not None and each.texts == reference.texts:
            found[record.number] = each
        else:
            left_out.append(str(record.number))
    if left_out:
        logger.warning(
            "P(best) leaves out trials %s: their scores on the same examples cannot be read", ", ".join(left_out)
        )
    return found


def decide(
    run: StudyRun, complete: Sequence[TrialRecord], best: TrialRecord, scores: Mapping[int, ScoreTable]
) -> tuple[TrialRecord, Choice | None]:
    """The winner, and how sure the choice is; without the latter if too few trials or examples were scored.

    Args:
        run: The study.
        complete: Its complete trials.
        best: The one with the highest mean.
        scores: Of `score_tables`; with a judge, perhaps with more verdicts.
    """
    objective, settings = Score(run.objectives[0]), run.config.evaluation
    numbers = list(scores)
    if len(numbers) < 2:
        return best, None
    comparison = compare(
        *_matrices(list(scores.values()), objective, settings), best=numbers.index(best.number), seed=run.config.seed
    )
    if comparison is None:
        logger.info("Too few examples were scored to say how sure the choice of trial %d is", best.number)
        return best, None
    if unknown := [str(number) for number, value in zip(numbers, comparison.expected, strict=True) if np.isnan(value)]:
        logger.warning(
            "P(best) leaves out trials %s: too few of their examples were judged that trial %d was judged on",
            *(", ".join(unknown), best.number),
        )
    records = {record.number: record for record in complete}
    compared = [records[number] for number in numbers]
    # The judge's objective counts in points.
    unit = 100 if objective is Score.JUDGE_SCORE else 1
    winner = _cheapest(compared, comparison, run.config.search.indifference)
    return compared[winner], Choice(
        winner=compared[winner].number,
        best=best.number,
        reason=_reason(compared[winner], best, objective),
        p_best={number: float(value) for number, value in zip(numbers, comparison.p_best, strict=True)},
        set=tuple(numbers[n] for n in np.argsort(-comparison.p_best, kind="stable") if comparison.in_set[n]),
        regret_bound=float(comparison.regret_bounds[winner]) * unit,
        examples=int(comparison.examples[comparison.best]),
        final={number: each.final for number, each in scores.items() if each.final is not None},
    )


def decide_settings(
    run: StudyRun, trained: Sequence[TrialRecord], scores: Mapping[int, Sequence[ScoreTable]]
) -> tuple[TrialRecord, Choice] | None:
    """The trial with the best setting, and how sure that choice is; None if too few examples were scored.

    Args:
        run: The study.
        trained: Trials whose settings were trained with several seeds.
        scores: The scores of the adapters of each, by number; as many for each.
    """
    objective, settings = Score(run.objectives[0]), run.config.evaluation
    tables = [each for record in trained for each in scores[record.number]]
    bertscore, judge = _matrices(tables, objective, settings)
    shape = (len(trained), -1, bertscore.shape[1])
    adapters, verdicts = bertscore.reshape(shape), None if judge is None else judge.reshape(shape)
    variance, seeds = seed_variance(adapters, verdicts), adapters.shape[1]
    means = with_unseen_noise(adapters.mean(axis=1), allowing_for_few(variance, len(trained), seeds) / seeds)
    comparison = compare(means, None if verdicts is None else verdicts.mean(axis=1), seed=run.config.seed)
    if comparison is None:
        return None
    # The difference in each mean that another seed makes, in the unit of the objective.
    unit = 100 if objective is Score.JUDGE_SCORE else 1
    logger.info("Another seed changes %s by %.4f (standard deviation)", objective, unit * variance**0.5)
    best, winner = trained[comparison.best], _cheapest(trained, comparison, run.config.search.indifference)
    return trained[winner], Choice(
        winner=trained[winner].number,
        best=best.number,
        reason=_reason(trained[winner], best, objective, f" mean over {seeds} seeds"),
        p_best={record.number: float(value) for record, value in zip(trained, comparison.p_best, strict=True)},
        set=tuple(trained[n].number for n in np.argsort(-comparison.p_best, kind="stable") if comparison.in_set[n]),
        regret_bound=float(comparison.regret_bounds[winner]) * unit,
        examples=int(comparison.examples[comparison.best]),
        seeds=seeds - 1,
    )


def _cheapest(records: Sequence[TrialRecord], comparison: Comparison, indifference: float) -> int:
    """The trial with the smallest adapter among those that are as good as the best one; of equal size, the best."""
    best, behind = comparison.best, -comparison.differences
    # A trial that has left a race is not as good only because little is known of it.
    known = comparison.in_set & (comparison.examples >= ENOUGH * comparison.examples[best])
    sizes = {n: size for n, record in enumerate(records) if (size := _size(record)) is not None}
    equal = [
        n
        for n, size in sizes.items()
        if best in sizes and size < sizes[best] and known[n] and behind[n] <= indifference
    ]
    return min(equal, key=lambda n: (sizes[n], behind[n], records[n].number), default=best)


def _size(record: TrialRecord) -> int | None:
    """Size of the adapter in bytes; an earlier version did not record it."""
    if record.adapter_bytes is not None or record.folder is None:
        return record.adapter_bytes
    return adapter_bytes(record.folder / ADAPTER_DIR) or None


def _size_text(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _reason(winner: TrialRecord, best: TrialRecord, objective: Score, averaged: str = "") -> str:
    if winner is best:
        return f"which has the highest {objective}{averaged}"
    sizes = [_size_text(_size(record) or 0) for record in (winner, best)]
    return (
        f"whose adapter ({sizes[0]}) is smaller than that of trial {best.number} ({sizes[1]}), which has the highest "
        f"{objective}{averaged} and is not clearly better"
    )


def _matrices(
    scores: Sequence[ScoreTable], objective: Score, settings: EvaluationConfig
) -> tuple[Floats, Floats | None]:
    """Weighted scores of each trial on each example, as `compare` takes them."""
    judge = np.array([each.judge for each in scores], dtype=np.float64) / 100
    if objective is Score.BERTSCORE_F1:
        return np.array([each.metrics[BERTSCORE] for each in scores], dtype=np.float64), None
    if objective is Score.JUDGE_SCORE:
        return np.zeros_like(judge), judge
    weight = settings.weights_with(judge=True)[1]
    judged = weight > 0 and not np.isnan(judge).all()
    metrics = np.array([weighted(each.metrics, settings, judge=judged) for each in scores])
    return metrics, weight * judge if judged else None


def read_scores(config: ExperimentConfig, run_id: str | None) -> ScoreTable | None:
    """The scores of an adapter that may count, from its run; None if they cannot be read."""
    if run_id is None:
        return None
    try:
        text = patiently(config.tracking, functools.partial(read_text, config.tracking, run_id, PREDICTIONS_FILE))
        table = json.loads(text or "")
        columns = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
        return ScoreTable(
            list(zip(columns[PredictionColumn.PROMPT], columns[PredictionColumn.REFERENCE], strict=True)),
            {
                name: [float(score) for score in columns[score_column(name)]]
                for name in {BERTSCORE: 1.0} | config.evaluation.weights_with(judge=True)[0]
            },
            columns[PredictionColumn.JUDGE_SCORE],
        )
    except StoreUnavailableError:
        raise
    except (TrackingError, ValueError, KeyError, TypeError) as error:
        logger.debug("Scores of run %s: %s", run_id, error)
        return None
