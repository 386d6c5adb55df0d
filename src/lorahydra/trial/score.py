"""Computes scores from predictions and verdicts, and records them.

```
predictions → means of BERTScore → verdicts → table of predictions → combined, beside the baseline → gain
```
Each is recorded at once, so that a failing judge costs the run only its verdicts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import LorahydraError
from lorahydra.evaluation import Evaluation, Judging, Predictions, evaluate, judged_alike
from lorahydra.evaluation.length_control import length_controlled
from lorahydra.evaluation.scoring import Gain, gain, metric_interval
from lorahydra.judges import Judgement
from lorahydra.names import (
    BASELINE,
    EVAL,
    FINAL,
    FINAL_PREDICTIONS_FILE,
    PREDICTIONS_FILE,
    TEST,
    TEST_PREDICTIONS_FILE,
    Metric,
    PredictionColumn,
    Score,
    Tag,
    ends_of,
    scored,
)
from lorahydra.tracking import TrackedRun
from lorahydra.trial.predict import TrialPredictions
from lorahydra.trial.record import record_judging
from lorahydra.utils.progress import Progress

__all__ = ["TrialScores", "record_finalist", "score"]

logger = logging.getLogger(__name__)

TABLES = {EVAL: PREDICTIONS_FILE, FINAL: FINAL_PREDICTIONS_FILE, TEST: TEST_PREDICTIONS_FILE}


@dataclass(frozen=True)
class TrialScores:
    """The scores of the predictions."""

    tuned: Evaluation
    baseline: Evaluation | None
    """The untuned model on the same examples; None if it was not asked, or cannot be compared."""
    gain: Gain | None
    """Tuned minus untuned `combined`."""


def score(
    run: TrackedRun,
    config: ExperimentConfig,
    predictions: TrialPredictions,
    judging: Judging,
    progress: Progress,
    prefix: str = EVAL,
) -> TrialScores:
    """Score predictions that the judge has received, and record them and their scores.

    Metrics have the `prefix` `EVAL`, or `TEST` on the test split.

    Raises:
        JudgeError: Too few verdicts on the tuned model's predictions; all earlier results are recorded.
    """
    tuned = predictions.tuned
    run.metrics({Metric.TIME_GENERATE: tuned.generate_seconds, Metric.TIME_BERTSCORE: tuned.bertscore_seconds})
    _record_means(run, prefix, tuned.means, predictions.steps)
    _record_metrics(run, config, prefix, tuned, predictions.steps)
    if predictions.baseline is not None:
        _record_means(run, BASELINE, predictions.baseline.means)
        _record_metrics(run, config, BASELINE, predictions.baseline)

    verdicts, *of_baseline = judging.verdicts(progress)
    baseline_verdicts = of_baseline[0] if of_baseline else None
    given = [each for each in (verdicts, baseline_verdicts) if each is not None]
    if judging.session is not None:
        record_judging(run, judging.session, given, prefix)
    for each in given:
        _warn_of_missing(each)
    _record_table(run, predictions, verdicts, baseline_verdicts, prefix)

    scores = _compare(config, predictions, verdicts, baseline_verdicts)
    _log(scores.tuned)
    _record_means(run, prefix, scores.tuned.judged_means, predictions.steps)
    if scores.baseline is not None:
        _record_means(run, BASELINE, scores.baseline.judged_means)
    _record_length_controlled(run, predictions, [(prefix, scores.tuned), (BASELINE, scores.baseline)])
    if scores.gain is not None:
        _record_means(run, prefix, scores.gain.means)
        run.tags({Tag.GAIN: scores.gain.sentence})
    return scores


def record_finalist(run: TrackedRun, predictions: TrialPredictions, tuned: Evaluation) -> None:
    """Record the scores of a trial that was judged once more, on all validation examples."""
    _record_means(run, FINAL, tuned.means, predictions.steps)
    _record_length_controlled(run, predictions, [(FINAL, tuned)])
    _record_table(run, predictions, tuned.verdicts, None, FINAL)


def _compare(
    config: ExperimentConfig,
    predictions: TrialPredictions,
    verdicts: Judgement | None,
    baseline_verdicts: Judgement | None,
) -> TrialScores:
    """The scores of both models; without the baseline if the judge gave too few verdicts on it."""
    settings, seed = config.evaluation, config.seed
    tuned = evaluate(predictions.tuned, verdicts, settings, seed)
    if predictions.baseline is None:
        return TrialScores(tuned, None, None)
    try:
        baseline = evaluate(predictions.baseline, baseline_verdicts, settings, seed)
        tuned, baseline = judged_alike([tuned, baseline], settings, seed)
    except LorahydraError as error:
        logger.warning("The untuned model is left out of the comparison: %s", error)
        return TrialScores(tuned, None, None)
    return TrialScores(tuned, baseline, gain(tuned.example_scores, baseline.example_scores, settings, seed))


def _warn_of_missing(verdicts: Judgement) -> None:
    count = verdicts.chosen
    if verdicts.error is not None:
        logger.warning("Judging ended early: %s", verdicts.error)
    elif verdicts.judged < count:
        logger.warning(
            "The judge gave no verdict on %d of %d predictions, which are not in its mean; most often: %s",
            count - verdicts.judged,
            count,
            verdicts.main_fault,
        )


def _log(tuned: Evaluation) -> None:
    predictions, verdicts = tuned.predictions, tuned.verdicts
    if verdicts is None or verdicts.score is None:
        # With the usual weights, `combined` is BERTScore.
        own = tuned.combined.mean != predictions.bertscore_f1
        combined = f", combined={tuned.combined.mean:.4f}" if own else ""
        logger.info("Evaluation (no LLM judge): BERTScore=%.4f%s", predictions.bertscore_f1, combined)
    else:
        logger.info("LLM judge mean score: %.2f (on %d examples)", verdicts.score, verdicts.judged)
        logger.info(
            "Evaluation: BERTScore=%.4f, LLM judge=%.2f, combined=%.4f",
            predictions.bertscore_f1,
            verdicts.score,
            tuned.combined.mean,
        )
    if predictions.truncated:
        logger.warning(
            "%d of %d predictions were truncated at evaluation.max_new_tokens: raise it if longer ones are expected",
            predictions.truncated,
            len(predictions.texts),
        )


def _record_means(run: TrackedRun, prefix: str, means: Mapping[str, float], step: int | None = None) -> None:
    run.metrics({scored(prefix, name): value for name, value in means.items()}, step=step)


def _record_metrics(
    run: TrackedRun, config: ExperimentConfig, prefix: str, predictions: Predictions, step: int | None = None
) -> None:
    """Record the intervals of the chosen metrics, whose means are among those of the predictions, and log both."""
    said = []
    for name, scores in predictions.metrics.items():
        found = metric_interval(scores, config.evaluation, config.seed)
        low, high = ends_of(name)
        _record_means(run, prefix, {low: found.low, high: found.high}, step)
        said.append(f"{name}={found.mean:.4f} ({found.low:.4f} to {found.high:.4f})")
    if said and prefix != BASELINE:
        logger.info("Metrics: %s", ", ".join(said))


def _record_length_controlled(
    run: TrackedRun, predictions: TrialPredictions, sides: Sequence[tuple[str, Evaluation | None]]
) -> None:
    """Record the judge's scores without what goes with the length of the answers, under each side's prefix."""
    judged = [(prefix, one, one.verdicts) for prefix, one in sides if one is not None and one.verdicts is not None]
    if not judged:
        return
    lengths = [[len(text) for text in one.predictions.texts] for _, one, _ in judged]
    references = [len(text) for text in predictions.examples.references]
    means = length_controlled([verdicts.scores for _, _, verdicts in judged], lengths, references)
    for (prefix, _, _), mean in zip(judged, means or (), strict=False):
        _record_means(run, prefix, {Score.JUDGE_SCORE_LENGTH_CONTROLLED: mean}, predictions.steps)


def _record_table(
    run: TrackedRun,
    predictions: TrialPredictions,
    verdicts: Judgement | None,
    baseline_verdicts: Judgement | None,
    prefix: str,
) -> None:
    tuned, baseline = predictions.tuned, predictions.baseline
    nothing = [None] * len(tuned.texts)
    columns: dict[str, Sequence[object]] = {
        PredictionColumn.PROMPT: predictions.examples.texts,
        PredictionColumn.REFERENCE: predictions.examples.references,
        PredictionColumn.PREDICTION: tuned.texts,
        PredictionColumn.BERTSCORE_F1: tuned.bertscore.f1,
        PredictionColumn.JUDGE_SCORE: nothing if verdicts is None else verdicts.given,
        PredictionColumn.JUDGE_REASON: nothing if verdicts is None else verdicts.reasons,
        PredictionColumn.LENGTH: [len(text) for text in tuned.texts],
        **tuned.metrics,
    }
    if verdicts is not None:
        columns[PredictionColumn.JUDGE_CRITERIA] = verdicts.criteria
    if baseline is not None:
        columns |= {
            PredictionColumn.BASELINE_PREDICTION: baseline.texts,
            PredictionColumn.BASELINE_BERTSCORE_F1: baseline.bertscore.f1,
            **{f"{BASELINE}_{name}": scores for name, scores in baseline.metrics.items()},
        }
        if verdicts is not None:
            given = nothing if baseline_verdicts is None else baseline_verdicts.given
            columns[PredictionColumn.BASELINE_JUDGE_SCORE] = given
    run.table(list(columns), list(zip(*columns.values(), strict=True)), TABLES[prefix])
