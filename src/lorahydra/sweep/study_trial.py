"""One trial of a study: runs the experiment with its place in the study."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lorahydra.config.changes import SCORE_NEUTRAL_KEYS, differing
from lorahydra.config.compose import to_config
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.search import objectives
from lorahydra.errors import ConfigError, NotRecordedError, OutputError, StudyError, TrialPruned
from lorahydra.evaluation import Evaluation
from lorahydra.evaluation.scoring import weighted
from lorahydra.names import ADAPTER_DIR, Kind, Score, State
from lorahydra.sweep.current import context, current_trial
from lorahydra.sweep.probable import EXAMPLES
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.trial.place import StudyPlace, TrialResult
from lorahydra.trial.rejudge import judge_saved, rejudge_hint
from lorahydra.trial.run import run_trial
from lorahydra.trial.saved import SavedTrial, load_trial

__all__ = ["adapter_bytes", "place_of", "run_study_trial", "saved_predictions", "study_task"]

logger = logging.getLogger("lorahydra.sweep")

MOST_EXAMPLES = 2000
"""With more examples, their scores are not kept beside each trial."""
LIMITS = {"data.overlong", "data.max_length"}
"""Keys that may change as long as the rows are the same, which the study has checked."""


def study_task(tree: DictConfig) -> float | list[float]:
    """The function that Hydra calls for each trial of a study."""
    trial = current_trial()
    if trial is None:
        raise StudyError("this is not a trial of a study: use hydra/sweeper=lorahydra")
    values = run_study_trial(to_config(tree), list(HydraConfig.get().overrides.task), trial)
    return values[0] if len(values) == 1 else values


def run_study_trial(config: ExperimentConfig, overrides: Sequence[str], trial: RunningTrial) -> list[float]:
    """Run the trial, and tell the study its losses and result.

    Args:
        config: The trial's experiment.
        overrides: The overrides that the study set.
        trial: The trial.

    Returns:
        One value per objective.
    """
    if trial.number in context.packed:
        return _values(context.packed[trial.number](), config)
    place = _Place(trial, config)
    result = _result_of_saved_predictions(place, config) or run_trial(config, overrides=overrides, place=place)
    return _values(result, config)


def _result_of_saved_predictions(place: _Place, config: ExperimentConfig) -> TrialResult | None:
    """The result of an earlier attempt at the same parameters that lacks only verdicts."""
    kept = saved_predictions(place.trial, config)
    if kept is None:
        return None
    logger.info("Trial %d: the adapter and the predictions are kept in %s; they are judged", place.number, kept.folder)
    try:
        with rejudge_hint(kept.folder, place):
            return judge_saved(kept, config, place=place, tracking_uri=config.tracking.uri)
    except NotRecordedError as error:
        logger.warning("Trial %d is trained again: %s", place.number, error)
        return None


def saved_predictions(trial: RunningTrial, config: ExperimentConfig) -> SavedTrial | None:
    """The predictions of an earlier attempt at the same parameters, if only verdicts on them are missing."""
    for facts in trial.earlier():
        folder, run_id = facts.get("folder"), facts.get("run_id")
        if folder is None or config.judge.name == "none":
            continue
        try:
            kept = load_trial(Path(folder), tracking_uri=config.tracking.uri)
        except (OutputError, ConfigError):
            continue  # there are none, another version wrote them, or they are on another machine
        is_same = kept.run_id == run_id and not differing(kept.config, config, SCORE_NEUTRAL_KEYS | LIMITS)
        if is_same and any((kept.folder / ADAPTER_DIR).glob("*.safetensors")):
            return kept
    return None


def place_of(trial: RunningTrial, config: ExperimentConfig) -> StudyPlace:
    """The place of a trial in its study, for an experiment that runs elsewhere than in a sweep."""
    return _Place(trial, config)


class _Place:
    """The trial's place in its study (`lorahydra.trial.place.StudyPlace`)."""

    kind = Kind.TRIAL

    def __init__(self, trial: RunningTrial, config: ExperimentConfig) -> None:
        self.trial = trial
        self._config = config

    @property
    def study_name(self) -> str:
        return self.trial.study_name

    @property
    def storage(self) -> str | None:
        return self.trial.storage

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def params(self) -> Mapping[str, object]:
        return self.trial.params

    @property
    def parent_run_id(self) -> str | None:
        return self.trial.parent_run_id

    def started(self, run_id: str, output_dir: Path) -> None:
        self.trial.note(run_id=run_id, folder=str(output_dir.absolute()))

    @property
    def ended(self) -> TrialPruned | None:
        return self.trial.ended

    def measured(self, loss: float) -> None:
        self.trial.measured(loss)

    def forgot(self, loss: float) -> None:
        limit = self._config.search.max_forgetting
        over = limit is not None and loss > limit
        excluded = (
            f"forgets too much: {loss:+.3g} on general texts, above search.max_forgetting={limit:g}" if over else None
        )
        self.trial.note(forgetting=round(loss, 5), excluded=excluded)

    def finished(self, result: TrialResult) -> None:
        tuned = result.scores.tuned
        verdicts = tuned.verdicts
        if verdicts is not None:
            self.trial.judged_by(verdicts.models)
        facts = {
            "combined": tuned.combined.mean,
            "combined_low": tuned.combined.low,
            "combined_high": tuned.combined.high,
            "bertscore_f1": tuned.predictions.bertscore_f1,
            "judge_score": None if verdicts is None else verdicts.score,
            EXAMPLES: _contributions(tuned, self._config),
            "metrics": {name: statistics.fmean(scores) for name, scores in tuned.predictions.metrics.items()},
            "seconds": result.seconds,
            "adapter_bytes": adapter_bytes(result.adapter),
            "baseline": _headlines(result.scores.baseline),
        }
        if result.scores.forgetting is None:  # answers of an earlier attempt were judged again
            measured = next((one for one in self.trial.earlier() if "forgetting" in one), {})
            facts |= {name: measured[name] for name in ("forgetting", "excluded") if name in measured}
        self.trial.complete(_values(result, self._config), facts)
        if self.trial.state is not State.COMPLETE:
            raise ValueError(self.trial.failure)


def _contributions(tuned: Evaluation, config: ExperimentConfig) -> dict[str, list[float | None]] | None:
    """What metrics and verdicts contribute to `combined` on each example, for `lorahydra.sweep.probable`.

    Returns:
        None where the mean says as much, because each example has a verdict that counts or none has, and where a study
        is not after `combined`.
    """
    scores, (_, weight) = tuned.example_scores, config.evaluation.weights_with(judge=True)
    partly = scores.judge is not None and None in scores.judge and len(scores.judge) <= MOST_EXAMPLES
    if not partly or not weight or objectives(config.objective) != [Score.COMBINED]:
        return None
    return {
        "metrics": weighted(scores.metrics, config.evaluation, judge=True).round(5).tolist(),
        "judge": [None if score is None else round(weight * score / 100, 5) for score in scores.judge or ()],
    }


def _headlines(baseline: Evaluation | None) -> dict[str, float | None] | None:
    """What a study keeps of the untuned model's scores on the validation split."""
    if baseline is None:
        return None
    return {
        Score.COMBINED: baseline.combined.mean,
        Score.COMBINED_LOW: baseline.combined.low,
        Score.COMBINED_HIGH: baseline.combined.high,
        Score.BERTSCORE_F1: baseline.predictions.bertscore_f1,
        Score.JUDGE_SCORE: None if baseline.verdicts is None else baseline.verdicts.score,
    }


def adapter_bytes(adapter: Path) -> int:
    """Size of the weights in an adapter's folder."""
    return sum(file.stat().st_size for file in adapter.glob("*.safetensors"))


def _values(result: TrialResult, config: ExperimentConfig) -> list[float]:
    tuned = result.scores.tuned
    values: dict[str, Callable[[], float | None]] = {
        "combined": lambda: tuned.combined.mean,
        "bertscore_f1": lambda: tuned.predictions.bertscore_f1,
        "judge_score": lambda: tuned.verdicts.score if tuned.verdicts is not None else None,
        "loss": lambda: result.loss,
        "time": lambda: result.seconds,
        "adapter_size": lambda: adapter_bytes(result.adapter),
    }
    chosen = [values[name]() for name in objectives(config.objective)]
    return [math.nan if value is None else float(value) for value in chosen]
