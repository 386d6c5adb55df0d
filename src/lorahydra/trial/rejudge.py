"""Judges answers that are there already: after a fault of the judge, or all of a finalist's before a winner is named.

```python
rejudge(Path("outputs/2026-01-01/12-00-00"))  # goes on where the judge failed; nothing is judged twice
ranking = judge_finalists([Path("multirun/…/0"), Path("multirun/…/1")])
```
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.changes import REJUDGING_NEUTRAL_KEYS, SCORE_NEUTRAL_KEYS, differing
from lorahydra.config.compose import restored_config
from lorahydra.config.judge import refuse_secret
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, JudgeCoverageError, OutputError
from lorahydra.evaluation import Evaluation, Judging, evaluate, judged_alike
from lorahydra.judges import JudgeSession, load_session
from lorahydra.names import ADAPTER_DIR, ANSWERS_FILE, EVAL, FINAL, OBJECTIVE, Metric, Score, State, Tag, scored
from lorahydra.tracking import TrackedRun, patiently, read_run, reopen_run, sync
from lorahydra.trial.record import record_judging, record_scores, run_name
from lorahydra.trial.saved_answers import SavedTrial, load_answers, no_answers
from lorahydra.trial.score import StudyPlace, TrialJudging, TrialResult, TrialScores, finish_trial, rejudge_hint
from lorahydra.utils.interrupts import postponed, raise_if_interrupted
from lorahydra.utils.progress import Progress

__all__ = ["Finalist", "find_trials", "judge_finalists", "judge_kept", "rejudge", "with_overrides"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finalist:
    """A trial whose answers to all validation examples were judged."""

    trial: SavedTrial
    tuned: Evaluation


def find_trials(folders: Sequence[Path]) -> list[Path]:
    """Output folders of trials that have answers: the folders themselves, or those below them.

    Raises:
        OutputError: A folder is not there, or holds none.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(f"there is no folder {folder}: give the output folder of a trial or of several")
        here = sorted(path.parent for path in folder.rglob(ANSWERS_FILE))
        if not here:
            raise no_answers(folder)
        found += here
    return list(dict.fromkeys(found))


def rejudge(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> TrialScores:
    """Judge the answers of a trial that ended because of the judge, and complete its run.

    Verdicts that were given are in the cache and cost nothing. A study does not hear of it: for its trials there is
    `lorahydra.sweep.rejudge_trial.rejudge_trial`.

    Args:
        folder: The trial's output folder.
        overrides: Of the judge's keys that do not change verdicts, for example `judge.max_cost=2`.
        tracking_uri: Where the MLflow store is, if it has moved.
        progress: Where to show the progress.

    Raises:
        LorahydraError: The judge fails again, or the trial cannot be read.
    """
    trial = load_answers(folder, tracking_uri=tracking_uri)
    config = with_overrides(trial.config, overrides)
    with rejudge_hint(folder):
        return judge_kept(trial, config, tracking_uri=tracking_uri, progress=progress).scores


def judge_kept(
    trial: SavedTrial,
    config: ExperimentConfig,
    *,
    place: StudyPlace | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> TrialResult:
    """Judge answers that are kept, and complete the run of the trial that gave them.

    Args:
        trial: The trial.
        config: Its experiment, as it is now.
        place: In a study, the trial as which it counts; it takes over the run.
        tracking_uri: Where the MLflow store is, if it has moved.
        progress: Where to show the progress.

    Raises:
        NotRecordedError: The store does not have the run.
        LorahydraError: The judge fails; the run is closed as failed.
    """
    started = time.perf_counter()
    session, answers = _session(config), trial.answers
    untuned = Judging(session, answers.examples, config.seed) if answers.untuned is not None else None
    judging = TrialJudging(Judging(session, answers.examples, config.seed), untuned)
    run = _reopened(trial, config, tracking_uri, forget_failure=True)
    with run.closed_on_error(judging.stop):
        if place is not None:
            place.started(run.run_id, trial.folder)
            name = f"{place.number}: {run_name(config)}"
            run.tags({Tag.TRIAL_NUMBER: str(place.number), "mlflow.runName": name})
        judging.start(answers)
        scores = finish_trial(run, config, session, answers, judging, progress or Progress())
        seconds = answers.seconds + time.perf_counter() - started
        run.metrics({Metric.TIME_TOTAL: seconds})
        loss = run.before.metrics.get(scored(EVAL, Score.LOSS), math.nan) if math.isnan(answers.loss) else answers.loss
        result = TrialResult(run.run_id, trial.folder / ADAPTER_DIR, scores, loss, seconds)
        raise_if_interrupted()
        # Together, so that the study and MLflow say the same.
        with postponed():
            if place is not None:
                place.finished(result)
            run.finish(State.COMPLETE)
    return result


def judge_finalists(
    folders: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    settings: ExperimentConfig | None = None,
    scores: Mapping[Path, float] | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> list[Finalist]:
    """Judge the best trials on all validation examples, `judge.repeats` times each, and rank them.

    The best `judge.finalists` by what they scored in their trial are taken. Their new scores are over the examples
    that have a verdict in each of them, and are recorded in their runs as `final/…`.

    Args:
        folders: Output folders of trials, judged alike on the same examples. What may change in a study may differ:
            all finalists are judged in the same way.
        overrides: As for `rejudge`.
        settings: The experiment whose judge judges now; that of the newest trial when left out.
        scores: `combined` of the trials by folder, where the caller knows it.
        tracking_uri: Where the MLflow store is, if it has moved.
        progress: Where to show the progress.

    Returns:
        Best first.

    Raises:
        ConfigError: The trials were not judged alike.
        LorahydraError: The judge gives too few verdicts.
    """
    progress = progress or Progress()
    trials = [load_answers(folder, tracking_uri=tracking_uri) for folder in folders]
    newest = with_overrides(settings or max(trials, key=_written).config, overrides)
    _check_alike(trials, newest)
    configs = [
        dataclasses.replace(
            trial.config,
            judge=newest.judge,
            evaluation=newest.evaluation,
            tracking=dataclasses.replace(newest.tracking, uri=trial.config.tracking.uri),
        )
        for trial in trials
    ]
    session = _session(newest)
    known = scores or {}
    first = [
        known[trial.folder] if trial.folder in known else _first_score(session, trial, config, progress)
        for trial, config in zip(trials, configs, strict=True)
    ]
    ranked = sorted(range(len(trials)), key=lambda index: -first[index])
    finalists = []
    for index in ranked[: session.config.finalists]:
        tuned = _judged(session, trials[index], configs[index], "all", session.config.repeats, progress)
        finalists.append(Finalist(trials[index], tuned))
        _record_finalist(finalists[-1], configs[index], tracking_uri, session)
    try:
        alike = judged_alike([finalist.tuned for finalist in finalists], newest.evaluation, newest.seed)
    except JudgeCoverageError as error:
        raise JudgeCoverageError(f"{error}: judge the finalists again, or fewer of them (judge.finalists)") from error
    for place, (finalist, tuned) in enumerate(zip(finalists, alike, strict=True)):
        if tuned is not finalist.tuned:
            finalists[place] = Finalist(finalist.trial, tuned)
            _record_finalist(finalists[place], configs[ranked[place]], tracking_uri, None)
    return sorted(finalists, key=lambda finalist: -finalist.tuned.combined.mean)


def _record_finalist(
    finalist: Finalist, config: ExperimentConfig, tracking_uri: str | None, session: JudgeSession | None
) -> None:
    """Add the scores to the trial's run, and what judging took where `session` is given."""
    run = _reopened(finalist.trial, config, tracking_uri, forget_failure=False)
    with run.closed_on_error(lambda: None):
        if session is not None and finalist.tuned.verdicts is not None:
            record_judging(run, session, [finalist.tuned.verdicts], FINAL)
        record_scores(run, finalist.trial.answers, finalist.tuned, None, None, FINAL)
    run.finish(run.before.state)


def _written(trial: SavedTrial) -> float:
    return (trial.folder / ANSWERS_FILE).stat().st_mtime


def _first_score(session: JudgeSession, trial: SavedTrial, config: ExperimentConfig, progress: Progress) -> float:
    """What the trial scored; judged anew only where its run does not say, with the cache's verdicts."""
    known = read_run(config.tracking, trial.run_id).metrics.get(OBJECTIVE)
    return _judged(session, trial, config, None, 1, progress).combined.mean if known is None else known


def _judged(
    session: JudgeSession,
    trial: SavedTrial,
    config: ExperimentConfig,
    n_examples: str | None,
    repeats: int,
    progress: Progress,
) -> Evaluation:
    """The tuned model's answers with verdicts on the trial's own examples, or on `all`."""
    judging = Judging(session, trial.answers.examples, config.seed, n_examples=n_examples, repeats=repeats)
    judging.start(trial.answers.tuned.texts)
    return evaluate(trial.answers.tuned, judging.result(progress), config.evaluation, config.seed)


def _reopened(
    trial: SavedTrial, config: ExperimentConfig, tracking_uri: str | None, *, forget_failure: bool
) -> TrackedRun:
    """The trial's run, with what was not sent yet.

    Raises:
        OutputError: The trial is still going on.
    """
    if patiently(config.tracking, lambda: sync(trial.folder, tracking_uri)).busy:
        raise OutputError(f"the trial in {trial.folder} is still going on: wait for its end")
    return reopen_run(config.tracking, output_dir=trial.folder, run_id=trial.run_id, forget_failure=forget_failure)


def _session(config: ExperimentConfig) -> JudgeSession:
    session = load_session(config.judge)
    if session is None:
        raise ConfigError("judge.name=none in the trial's answers.json: there is nothing to judge again")
    logger.info("LLM judge on: %s (%s)", config.judge.name, session.judge.model)
    return session


def with_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """The trial's config with other patience, limits or addresses for its judge."""
    for override in overrides:
        refuse_secret(override)
        key, equals, _ = override.partition("=")
        if key not in REJUDGING_NEUTRAL_KEYS or not equals:
            free = ", ".join(sorted(name.removeprefix("judge.") for name in REJUDGING_NEUTRAL_KEYS))
            raise ConfigError(
                f"{key} cannot be changed when answers are judged again, scores could not be compared; what can: "
                f"judge.KEY=VALUE with {free}"
            )
    return restored_config(dataclasses.asdict(config), overrides)


def _check_alike(trials: Sequence[SavedTrial], newest: ExperimentConfig) -> None:
    """Make sure that scores of the trials can be compared when they are judged as `newest` says."""
    for trial in trials:
        keys = differing(trial.config, newest, SCORE_NEUTRAL_KEYS | REJUDGING_NEUTRAL_KEYS)
        keys = [key for key in keys if key.startswith(("judge.", "evaluation.")) or key == "seed"]
        if keys:
            raise ConfigError(f"{trial.folder} differs from the others in {', '.join(keys)}: scores do not compare")
        if trial.answers.examples.digest != trials[0].answers.examples.digest:
            raise ConfigError(f"{trial.folder} and {trials[0].folder} answered different examples")
