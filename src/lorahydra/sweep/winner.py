"""The winner of a study: which trial it is, where its adapter is kept, and its score on the test split."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import OutputError, StudyError
from lorahydra.evaluation import Evaluation
from lorahydra.evaluation.choosing import ENOUGH
from lorahydra.names import ADAPTER_DIR, TEST, Score, Stage, State
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.deciding import ScoreTable, decide, decide_settings, read_scores, score_tables
from lorahydra.sweep.ranking import best_so_far
from lorahydra.sweep.repeats import MOST_REPEATED, Repeats
from lorahydra.sweep.stages import begin_stage
from lorahydra.sweep.study_run import StudyRun
from lorahydra.sweep.trial_record import RaceScore, TrialRecord
from lorahydra.tracking import fetch_folder
from lorahydra.trial.evaluate_adapter import score_adapter
from lorahydra.trial.prepare import prepare
from lorahydra.trial.racing import race_trials
from lorahydra.trial.record import record_data
from lorahydra.trial.saved import load_trial
from lorahydra.trial.score import TrialScores
from lorahydra.utils.files import replaced_dir

__all__ = ["choose_winner", "keep_adapter", "score_winner", "worth_repeating"]

logger = logging.getLogger("lorahydra.sweep")


def choose_winner(
    run: StudyRun, records: Sequence[TrialRecord], repeats: Repeats | None
) -> tuple[TrialRecord, Choice | None]:
    """The winner, and how sure the choice is.

    It is the trial with the best first objective among those that may win, with a judge after a race for more verdicts;
    or another one that is as good and has a smaller adapter. With `repeats`, settings that cannot be told apart are
    trained again before that.

    Raises:
        StudyError: No trial was completed.
    """
    best = best_so_far(records, run.directions)
    if best is None:
        failures = [record.failure for record in records if record.failure and record.state is not State.PRUNED]
        reason = f"; the last failure: {failures[-1]}" if failures else ""
        raise StudyError(f"no trial of the study was completed, so there is no winner{reason}")
    complete = [record for record in records if record.state is State.COMPLETE and record.excluded is None]
    if not complete:
        logger.warning(
            "All trials forget more than search.max_forgetting=%s: the winner is trial %d, which forgets least",
            *(run.config.search.max_forgetting, best.number),
        )
        return best, None
    scores: Mapping[int, ScoreTable] | None = score_tables(run, complete, best)
    if scores is None:
        if repeats is not None:
            logger.info("search.seeds is not used: trials cannot be compared by their scores on the examples")
        return best, None
    judge, (_, weight) = run.config.judge, run.config.evaluation.weights_with(judge=True)
    counts = judge.name != "none" and weight > 0 and run.objectives == [Score.COMBINED]
    if counts and judge.finalists > 1 and len(complete) > 1:
        best, scores = _raced(run, complete, best, scores)
    winner, choice = decide(run, complete, best, scores)
    if repeats is None:
        return winner, choice
    if choice is None:
        logger.info("search.seeds is not used: it is not known which trials may be as good as trial %d", winner.number)
        return winner, choice
    return _among_settings(run, {record.number: record for record in complete}, choice, scores, repeats)


def worth_repeating(choice: Choice, scores: Mapping[int, ScoreTable]) -> list[int]:
    """Numbers of the trials whose settings are trained with other seeds, the best one first.

    A trial that has left the race may still be as good, as few verdicts say little. But repeats are compared on the
    examples that all of them are judged on, and its few would be all that counts.
    """
    judged = {number: sum(score is not None for score in table.judge) for number, table in scores.items()}
    several = dict.fromkeys([choice.best, choice.winner, *choice.set])
    return [number for number in several if judged[number] >= ENOUGH * judged[choice.best]][:MOST_REPEATED]


def _among_settings(
    run: StudyRun,
    complete: Mapping[int, TrialRecord],
    choice: Choice,
    scores: Mapping[int, ScoreTable],
    repeats: Repeats,
) -> tuple[TrialRecord, Choice]:
    """The winner after the settings that cannot be told apart were trained with other seeds."""
    first, seeds = (complete[choice.winner], choice), run.config.search.seeds
    again = worth_repeating(choice, scores)
    if len(again) < 2 or any("training.seed" in complete[number].params for number in again):
        reason = "the seed is searched" if len(again) > 1 else f"no other trial may be as good as trial {choice.winner}"
        logger.info("search.seeds=%d: nothing is trained again, because %s", seeds, reason)
        return first
    logger.info(
        "%d trials may be the best one: the settings of trials %s are trained again (search.seeds=%d)",
        *(len(choice.set), ", ".join(map(str, again)), seeds),
    )
    begin_stage(run.queue.study, Stage.REPEATING)
    trained = [complete[number] for number in again]
    runs = repeats.train(trained, _judged_examples([scores[number] for number in again]))
    if not repeats.are_done(trained):
        logger.warning("Repeats are missing: the choice is by the trials alone")
        return first
    adapters = {number: [scores[number], *_tables(run, runs[number], scores[number])] for number in again}
    trained = [record for record in trained if len(adapters[record.number]) == seeds + 1]
    if len(trained) < len(again):
        left_out = [str(number) for number in again if complete[number] not in trained]
        logger.warning("Trials %s are left out: their settings have no score with each seed", ", ".join(left_out))
    decided = decide_settings(run, trained, adapters) if len(trained) > 1 else None
    if decided is None:
        logger.warning("The settings cannot be compared: the choice is by the trials alone")
        return first
    winner, among = decided
    return winner, replace(among, final=choice.final)


def _judged_examples(tables: Sequence[ScoreTable]) -> int | None:
    """On how many examples repeats of these trials are judged, so that they can be compared; None without a judge."""
    return min(sum(score is not None for score in table.judge) for table in tables) or None


def _tables(run: StudyRun, run_ids: Sequence[str], like: ScoreTable) -> list[ScoreTable]:
    """The scores in these runs, as far as they are on the same examples."""
    tables = (read_scores(run.config, run_id) for run_id in run_ids)
    return [table for table in tables if table is not None and table.texts == like.texts]


def _raced(
    run: StudyRun, complete: Sequence[TrialRecord], best: TrialRecord, scores: Mapping[int, ScoreTable]
) -> tuple[TrialRecord, Mapping[int, ScoreTable]]:
    """The best trial after a race for verdicts, and the scores with these verdicts; `best` is the best one before."""
    folders = {
        record.folder: record
        for record in complete
        if record.folder is not None and record.number in scores and _has_answers(run, record.folder)
    }
    if len(folders) < len(complete):
        logger.warning(
            "%d trials ran on other machines, or their answers cannot be read: they get no more verdicts here",
            len(complete) - len(folders),
        )
    if best.folder not in folders or len(folders) < 2:
        return best, scores
    begin_stage(run.queue.study, Stage.JUDGING)
    first = {folder: scores[record.number].judge for folder, record in folders.items()}
    raced = race_trials(first, run.config, run.config.tracking.uri)
    given = {folders[folder].number: verdicts for folder, verdicts in raced.verdicts.items()}
    final = {folders[folder].number: _race_score(tuned) for folder, tuned in raced.final.items()}
    judged = {
        number: replace(each, judge=given.get(number, each.judge), final=final.get(number))
        for number, each in scores.items()
    }
    return folders[raced.best], judged


def _has_answers(run: StudyRun, folder: Path) -> bool:
    try:
        load_trial(folder, tracking_uri=run.config.tracking.uri)
    except OutputError as error:
        logger.debug("%s", error)
        return False
    return True


def _race_score(tuned: Evaluation) -> RaceScore:
    verdicts, ends = tuned.verdicts, tuned.combined
    examples = len(tuned.predictions.texts) if verdicts is None else verdicts.judged
    return RaceScore(ends.mean, ends.low, ends.high, None if verdicts is None else verdicts.score, examples)


def keep_adapter(run: StudyRun, best: TrialRecord) -> Path:
    """Copy the winner's adapter to `best/` in the study's folder; from MLflow if another machine trained it.

    Raises:
        StudyError: The adapter is neither on this machine nor in MLflow.
    """
    target = run.folder / "best"
    source = None if best.folder is None else best.folder / ADAPTER_DIR
    if source is not None and source.is_dir():
        with replaced_dir(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        return target
    if best.run_id is None or not run.config.tracking.log_adapter:
        raise StudyError(
            f"the adapter of the best trial is neither here ({source}) nor in MLflow (tracking.log_adapter=false): "
            "copy the folder here, or finish the study where the trial was run, with `lorahydra studies resume`"
        )
    logger.info("Trial %d was run on another machine: its adapter comes from MLflow", best.number)
    fetch_folder(run.config.tracking, best.run_id, ADAPTER_DIR, target)
    return target


def score_winner(run: StudyRun, config: ExperimentConfig, adapter: Path) -> TrialScores | None:
    """Score the winner on the test split and record it in the study's run as `test/…` and `baseline/…`.

    Returns:
        None if there is no test split.

    Raises:
        LorahydraError: Data, model or judge cannot be used.
    """
    prepared = prepare(config)
    run.warnings = prepared.splits.report.warnings
    record_data(run.run, prepared.splits, prepared.splits)
    examples = prepared.test_set
    if examples is None:
        logger.warning(
            "There is no test split: the winner's only score is the one by which it was chosen, which is optimistic"
        )
        return None
    return score_adapter(run.run, config, prepared, examples, adapter, TEST)
