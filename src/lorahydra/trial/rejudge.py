"""Judges the predictions of a trial again, after a fault of the judge, and completes its run.

```python
rejudge(Path("outputs/2026-01-01/12-00-00"))  # goes on where the judge failed; nothing is judged twice
```
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorahydra.config.changes import REJUDGING_NEUTRAL_KEYS, may_change
from lorahydra.config.compose import restored_config
from lorahydra.config.judge import refuse_secret
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import (
    PREDICTIONS_KEPT,
    ConfigError,
    JudgeBudgetError,
    JudgeCoverageError,
    JudgeError,
    JudgeSetupError,
    OutputError,
)
from lorahydra.evaluation import Judging
from lorahydra.judges import JudgeSession, load_session
from lorahydra.names import ADAPTER_DIR, ANSWERS_FILE, EVAL, Kind, Score, scored
from lorahydra.tracking import patiently, reopen_run, sync
from lorahydra.trial.place import StudyPlace, TrialResult, end_trial, number_tag, run_name
from lorahydra.trial.saved import SavedTrial, load_trial
from lorahydra.trial.score import TrialScores, score
from lorahydra.utils.progress import Progress

__all__ = ["judge_saved", "judge_session", "rejudge", "rejudge_hint", "send_the_rest", "with_overrides"]

logger = logging.getLogger(__name__)


def rejudge(folder: Path, *, overrides: Sequence[str] = (), tracking_uri: str | None = None) -> TrialScores:
    """Judge the predictions of a trial that ended because of the judge, and complete its run.

    Verdicts that were given before are in the cache and cost nothing. A study does not hear of it: for its trials
    there is `lorahydra.sweep.rejudge_trial.rejudge_trial`.

    Args:
        folder: The trial's output folder.
        overrides: Overrides of judge keys that do not change verdicts, for example `judge.max_cost=2`.
        tracking_uri: Where the MLflow store is, if it has moved.

    Raises:
        LorahydraError: The judge fails again, or the trial cannot be read.
    """
    trial = load_trial(folder, tracking_uri=tracking_uri)
    config = with_overrides(trial.config, overrides)
    with rejudge_hint(folder):
        return judge_saved(trial, config, tracking_uri=tracking_uri).scores


def judge_saved(
    trial: SavedTrial, config: ExperimentConfig, *, place: StudyPlace | None = None, tracking_uri: str | None = None
) -> TrialResult:
    """Judge saved predictions with the current settings, and complete the run of the trial that made them.

    In a study, `place` is that of the trial that counts instead; it takes over the run.
    """
    started = time.perf_counter()
    predictions = trial.predictions
    session = judge_session(config)
    judging = Judging(session, predictions.examples, config.seed, n_examples=config.judge.n_examples)
    send_the_rest(trial, config, tracking_uri)
    with reopen_run(config.tracking, output_dir=trial.folder, run_id=trial.run_id) as run, judging:
        if place is not None:
            place.started(run.run_id, trial.folder)
            run.tags({**number_tag(place), "mlflow.runName": run_name(config, place)})
        judging.start(predictions.tuned.texts)
        for untuned in predictions.untuned.values():
            judging.start(untuned.texts)
        scores = score(run, config, predictions, judging, Progress())
        loss = run.before.metrics.get(scored(EVAL, Score.LOSS), math.nan) if math.isnan(trial.loss) else trial.loss
        seconds = trial.seconds + time.perf_counter() - started
        result = TrialResult(run.run_id, trial.folder / ADAPTER_DIR, scores, loss, seconds)
        end_trial(run, result, place)
    return result


@contextmanager
def rejudge_hint(folder: Path, place: StudyPlace | None = None) -> Iterator[None]:
    """Add to a judge's error how to continue without training again.

    A study, in which the trial has its `place`, says itself how to resume after a fault that stops it. Only a trial of
    it can be judged again by itself; a repeat cannot.
    """
    try:
        yield
    except (JudgeError, JudgeSetupError, JudgeBudgetError) as error:
        kept = f"{str(error).rstrip('.')}{PREDICTIONS_KEPT}"
        if place is None or (isinstance(error, JudgeCoverageError) and place.kind is Kind.TRIAL):
            kept += f"; go on with: lorahydra judges rejudge {shlex.quote(str(folder))}"
        raise type(error)(kept) from error


def send_the_rest(trial: SavedTrial, config: ExperimentConfig, tracking_uri: str | None) -> None:
    """Send what is still unsent to the run of a trial; `OutputError` if the trial is still running."""
    if patiently(config.tracking, lambda: sync(trial.folder, tracking_uri)).busy:
        raise OutputError(f"the trial in {trial.folder} is still running: wait until it ends")


def judge_session(config: ExperimentConfig) -> JudgeSession:
    """The judge of a saved trial; `ConfigError` if it has none."""
    session = load_session(config.judge)
    if session is None:
        raise ConfigError(f"judge.name=none in the trial's {ANSWERS_FILE}: the trial has no judge")
    logger.info("LLM judge on: %s (%s)", config.judge.name, session.model)
    return session


def with_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """The trial's config with other timeouts, limits or addresses for its judge.

    Raises:
        ConfigError: A key would change verdicts, or its value is not allowed.
    """
    for override in overrides:
        refuse_secret(override)
        key, equals, _ = override.partition("=")
        if not may_change(key, REJUDGING_NEUTRAL_KEYS) or not equals:
            free = ", ".join(sorted(name.removeprefix("judge.") for name in REJUDGING_NEUTRAL_KEYS))
            raise ConfigError(
                f"{key} cannot be changed when predictions are judged again, because scores would not compare; what "
                f"can: judge.KEY=VALUE with {free}"
            )
    return restored_config(dataclasses.asdict(config), overrides)
