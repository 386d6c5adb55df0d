"""Judges the best trials on all validation examples before a winner is named.

```python
ranking = judge_finalists(find_trials([Path("multirun/2026-01-01")]))
```
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.changes import REJUDGING_NEUTRAL_KEYS, SCORE_NEUTRAL_KEYS, differing
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, JudgeCoverageError, OutputError
from lorahydra.evaluation import Evaluation, Judging, evaluate, judged_alike
from lorahydra.judges import Judgement, JudgeSession
from lorahydra.names import ANSWERS_FILE, FINAL, OBJECTIVE, REPEATS_DIR
from lorahydra.tracking import add_to_run, read_run
from lorahydra.trial.record import record_judging
from lorahydra.trial.rejudge import judge_session, send_the_rest, with_overrides
from lorahydra.trial.saved import SavedTrial, load_trial, not_saved
from lorahydra.trial.score import record_finalist

__all__ = ["Finalist", "check_alike", "find_trials", "judge_finalists", "judged_as", "record_final"]

logger = logging.getLogger(__name__)

REPEATS = f"{REPEATS_DIR}/[0-9]*-[0-9]*/{ANSWERS_FILE}"
"""Files of a study's repeats."""


@dataclass(frozen=True)
class Finalist:
    """A trial whose predictions for all validation examples were judged."""

    trial: SavedTrial
    tuned: Evaluation


def find_trials(folders: Sequence[Path]) -> list[Path]:
    """Output folders of trials that have saved predictions: the folders themselves, or those below them.

    A study's repeats are not trials, and are left out.
    """
    trials: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise OutputError(f"there is no folder {folder}: give the output folder of a trial or of several")
        found = (path.relative_to(folder) for path in folder.rglob(ANSWERS_FILE))
        here = sorted(folder / path.parent for path in found if not path.match(REPEATS))
        if not here:
            raise not_saved(folder)
        trials += here
    return list(dict.fromkeys(trials))


def judge_finalists(
    folders: Sequence[Path],
    *,
    overrides: Sequence[str] = (),
    settings: ExperimentConfig | None = None,
    scores: Mapping[Path, float] | None = None,
    tracking_uri: str | None = None,
) -> list[Finalist]:
    """Judge the best trials on all validation examples, `judge.repeats` times each, and rank them, best first.

    The `judge.finalists` trials with the best scores so far are taken. Their new scores are over the examples that have
    a verdict in each of them, and are recorded in their runs as `final/…`.

    Args:
        folders: Output folders of trials that were judged alike on the same examples. Settings that may change in a
            study may differ: all finalists are judged in the same way.
        overrides: As for `rejudge`.
        settings: The experiment whose judge is used; by default that of the newest trial.
        scores: `combined` of the trials by folder, if the caller has it.
        tracking_uri: Where the MLflow store is, if it has moved.

    Raises:
        ConfigError: The trials were not judged alike.
        JudgeError: The judge gives too few verdicts.
    """
    trials = [load_trial(folder, tracking_uri=tracking_uri) for folder in folders]
    newest = with_overrides(settings or max(trials, key=_written).config, overrides)
    check_alike(trials, newest)
    trials = [judged_as(trial, newest) for trial in trials]
    session = judge_session(newest)
    combined = dict(scores or {})
    for trial in trials:
        if trial.folder not in combined:
            try:
                combined[trial.folder] = _first_score(session, trial)
            except JudgeCoverageError as error:
                logger.warning("%s is left out: %s", trial.folder, error)
    if not combined:
        raise JudgeCoverageError(f"judge {session.config.name} gave too few verdicts on each of the trials")
    ranked = sorted((trial for trial in trials if trial.folder in combined), key=lambda trial: -combined[trial.folder])
    finalists = []
    for trial in ranked[: max(1, session.config.finalists)]:
        finalist = Finalist(trial, _judged(session, trial, "all", session.config.repeats))
        record_final(trial, finalist.tuned, [finalist.tuned.verdicts], tracking_uri)
        finalists.append(finalist)
    alike = _on_the_same_examples(finalists, newest, tracking_uri)
    return sorted(alike, key=lambda finalist: -finalist.tuned.combined.mean)


def _on_the_same_examples(
    finalists: Sequence[Finalist], config: ExperimentConfig, tracking_uri: str | None
) -> list[Finalist]:
    """The finalists with scores over the examples that have a verdict in each; changed scores are recorded."""
    try:
        alike = judged_alike([finalist.tuned for finalist in finalists], config.evaluation, config.seed)
    except JudgeCoverageError as error:
        raise JudgeCoverageError(f"{error}: judge the finalists again, or fewer of them (judge.finalists)") from error
    compared = [Finalist(finalist.trial, tuned) for finalist, tuned in zip(finalists, alike, strict=True)]
    for before, after in zip(finalists, compared, strict=True):
        if after.tuned is not before.tuned:
            record_final(after.trial, after.tuned, [], tracking_uri)
    return compared


def judged_as(trial: SavedTrial, newest: ExperimentConfig) -> SavedTrial:
    """The trial with the settings by which all finalists are judged; its run stays where it is."""
    tracking = dataclasses.replace(newest.tracking, uri=trial.config.tracking.uri)
    config = dataclasses.replace(trial.config, judge=newest.judge, evaluation=newest.evaluation, tracking=tracking)
    return dataclasses.replace(trial, config=config)


def record_final(
    trial: SavedTrial, tuned: Evaluation | None, judgements: Sequence[Judgement | None], tracking_uri: str | None
) -> None:
    """Add scores to the trial's run, and the calls and cost of the judgements, of which the last one comes first."""
    given = [judgement for judgement in judgements if judgement is not None]
    send_the_rest(trial, trial.config, tracking_uri)
    with add_to_run(trial.config.tracking, output_dir=trial.folder, run_id=trial.run_id) as run:
        if given:
            record_judging(run, given[0].session, given, FINAL)
        if tuned is not None:
            record_finalist(run, trial.predictions, tuned)


def _written(trial: SavedTrial) -> float:
    return (trial.folder / ANSWERS_FILE).stat().st_mtime


def _first_score(session: JudgeSession, trial: SavedTrial) -> float:
    """The score of the trial, from its run, or else from the verdicts in the cache."""
    recorded = read_run(trial.config.tracking, trial.run_id).metrics.get(OBJECTIVE)
    return _judged(session, trial).combined.mean if recorded is None else recorded


def _judged(session: JudgeSession, trial: SavedTrial, n_examples: str | None = None, repeats: int = 1) -> Evaluation:
    """The tuned model's predictions with verdicts on the trial's own examples, or on `all`."""
    config, predictions = trial.config, trial.predictions
    chosen = n_examples or config.judge.n_examples
    judging = Judging(session, predictions.examples, config.seed, n_examples=chosen, repeats=repeats)
    with judging:
        judging.start(predictions.tuned.texts)
        [verdicts] = judging.verdicts()
    return evaluate(predictions.tuned, verdicts, config.evaluation, config.seed)


def check_alike(trials: Sequence[SavedTrial], newest: ExperimentConfig) -> None:
    """Make sure that scores of the trials can be compared if they are judged with the settings of `newest`."""
    for trial in trials:
        keys = differing(trial.config, newest, SCORE_NEUTRAL_KEYS | REJUDGING_NEUTRAL_KEYS)
        keys = [key for key in keys if key.startswith(("judge.", "evaluation.")) or key == "seed"]
        if keys:
            raise ConfigError(
                f"{trial.folder} differs from the others in {', '.join(keys)}: their scores cannot be compared"
            )
        if trial.predictions.examples.digest != trials[0].predictions.examples.digest:
            raise ConfigError(f"{trial.folder} and {trials[0].folder} have predictions for different examples")
