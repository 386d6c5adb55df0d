"""Computes scores from predictions and verdicts, and records them.

```
predictions → means of BERTScore → verdicts → table of predictions → combined, beside the baseline → gain
```
Each is recorded at once, so that a failing judge costs the run only its verdicts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import LorahydraError
from lorahydra.evaluation import Evaluation, Judging, Predictions, evaluate, judged_alike
from lorahydra.evaluation.forgetting import Forgetting
from lorahydra.evaluation.length_control import length_controlled
from lorahydra.evaluation.scoring import Gain, gain, metric_interval
from lorahydra.judges import Judgement
from lorahydra.names import (
    BASELINE,
    EVAL,
    FEW_SHOT,
    FINAL,
    FINAL_PREDICTIONS_FILE,
    FORGETTING,
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
    few_shot: Evaluation | None = None
    """The untuned model with training examples in its prompts; None as for `baseline`."""
    few_shot_gain: Gain | None = None
    """Tuned minus this `combined`."""
    forgetting: Forgetting | None = None
    """What tuning changed on general texts; None if it was not measured."""

    @property
    def sentences(self) -> list[str]:
        """What the scores say: whether tuning helped, whether it beats prompting, what was forgotten."""
        said = (self.gain, self.few_shot_gain, self.forgetting)
        return [one.sentence for one in said if one is not None]


def score(
    run: TrackedRun,
    config: ExperimentConfig,
    predictions: TrialPredictions,
    judging: Judging,
    progress: Progress,
    prefix: str = EVAL,
    forgetting: Forgetting | None = None,
) -> TrialScores:
    """Score predictions that the judge has received, and record them and their scores.

    Metrics have the `prefix` `EVAL`, or `TEST` on the test split; what was forgotten is recorded as well.

    Raises:
        JudgeError: Too few verdicts on the tuned model's predictions; all earlier results are recorded.
    """
    tuned = predictions.tuned
    run.metrics({Metric.TIME_GENERATE: tuned.generate_seconds, Metric.TIME_BERTSCORE: tuned.bertscore_seconds})
    _record_means(run, prefix, tuned.means, predictions.steps)
    _record_metrics(run, config, prefix, tuned, predictions.steps)
    for side, untuned in predictions.untuned.items():
        _record_means(run, side, untuned.means)
        _record_metrics(run, config, side, untuned)

    if forgetting is not None:
        _record_means(run, FORGETTING, forgetting.means)
        run.tags({Tag.FORGETTING: forgetting.sentence})

    verdicts, *of_untuned = judging.verdicts(progress)
    judged = dict(zip(predictions.untuned, of_untuned, strict=True))
    given = [each for each in (verdicts, *of_untuned) if each is not None]
    if judging.session is not None:
        record_judging(run, judging.session, given, prefix)
    for each in given:
        _warn_of_missing(each)
    _record_table(run, predictions, verdicts, judged, prefix)

    scores = _compare(config, predictions, verdicts, judged)
    _log(scores.tuned)
    _record_means(run, prefix, scores.tuned.judged_means, predictions.steps)
    sides = {BASELINE: scores.baseline, FEW_SHOT: scores.few_shot}
    for side, scored_side in sides.items():
        if scored_side is not None:
            _record_means(run, side, scored_side.judged_means)
    _record_length_controlled(run, predictions, [(prefix, scores.tuned), *sides.items()])
    if scores.gain is not None:
        _record_means(run, prefix, scores.gain.means)
        run.tags({Tag.GAIN: scores.gain.sentence})
    if scores.few_shot_gain is not None:
        _record_means(run, prefix, {f"{FEW_SHOT}_{name}": value for name, value in scores.few_shot_gain.means.items()})
        run.tags({Tag.FEW_SHOT_GAIN: scores.few_shot_gain.sentence})
    return replace(scores, forgetting=forgetting)


def record_finalist(run: TrackedRun, predictions: TrialPredictions, tuned: Evaluation) -> None:
    """Record the scores of a trial that was judged once more, on all validation examples."""
    _record_means(run, FINAL, tuned.means, predictions.steps)
    _record_length_controlled(run, predictions, [(FINAL, tuned)])
    _record_table(run, predictions, tuned.verdicts, {}, FINAL)


def _compare(
    config: ExperimentConfig,
    predictions: TrialPredictions,
    verdicts: Judgement | None,
    judged: Mapping[str, Judgement | None],
) -> TrialScores:
    """The scores of all sides; without those of the untuned model on which the judge gave too few verdicts."""
    settings, seed = config.evaluation, config.seed
    tuned = evaluate(predictions.tuned, verdicts, settings, seed)
    untuned: dict[str, Evaluation] = {}
    for side, one in predictions.untuned.items():
        try:
            untuned[side] = evaluate(one, judged[side], settings, seed)
        except LorahydraError as error:
            logger.warning("The untuned model is left out of the comparison: %s", error)
    try:
        tuned, *alike = judged_alike([tuned, *untuned.values()], settings, seed)
        untuned = dict(zip(untuned, alike, strict=True))
    except LorahydraError as error:
        logger.warning("The untuned model is left out of the comparison: %s", error)
        untuned = {}
    shots = {BASELINE: 0, FEW_SHOT: settings.few_shot}
    gains = {
        side: gain(tuned.example_scores, one.example_scores, settings, seed, shots=shots[side])
        for side, one in untuned.items()
    }
    return TrialScores(tuned, untuned.get(BASELINE), gains.get(BASELINE), untuned.get(FEW_SHOT), gains.get(FEW_SHOT))


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
    if said and prefix not in (BASELINE, FEW_SHOT):
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
    judged: Mapping[str, Judgement | None],
    prefix: str,
) -> None:
    tuned = predictions.tuned
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
    for side, one in predictions.untuned.items():
        columns |= {
            f"{side}_{PredictionColumn.PREDICTION}": one.texts,
            f"{side}_{PredictionColumn.BERTSCORE_F1}": one.bertscore.f1,
            **{f"{side}_{name}": scores for name, scores in one.metrics.items()},
        }
        if verdicts is not None:
            given = judged.get(side)
            columns[f"{side}_{PredictionColumn.JUDGE_SCORE}"] = nothing if given is None else given.given
    run.table(list(columns), list(zip(*columns.values(), strict=True)), TABLES[prefix])
