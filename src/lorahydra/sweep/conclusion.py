"""The end of a study: the winner, its score on the test split, and what is kept of it all."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import OutputError, StoreAwayError, StudyError, TrackingError
from lorahydra.names import (
    ADAPTER_DIR,
    LEADERBOARD_FILE,
    RESULTS_FILE,
    STUDY_DIR,
    State,
    Tag,
)
from lorahydra.sweep.leaderboard import leaderboard_csv, write_leaderboard
from lorahydra.sweep.mlflow_notes import model_description, study_note
from lorahydra.sweep.objective import write_optimization_results
from lorahydra.sweep.plots import write_plots
from lorahydra.sweep.ranking import best_so_far, ranked
from lorahydra.sweep.storage import study_lock
from lorahydra.sweep.study_result import FinalScores, StudyResult, facts_of
from lorahydra.sweep.study_run import StudyRun
from lorahydra.sweep.study_store import RESULT
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.tracking import (
    add_model_files,
    fetch_folder,
    patiently,
    read_run,
    register_model,
    registered_name,
    sync,
    write_model_files,
)
from lorahydra.trial.score import TrialScores
from lorahydra.utils.files import atomic_file, replaced_dir
from lorahydra.utils.interrupts import postponed, raise_if_interrupted
from lorahydra.utils.progress import console

__all__ = ["conclude"]

logger = logging.getLogger("lorahydra.sweep")

Compose = Callable[[Mapping[str, Any], Path], ExperimentConfig]
"""The experiment with some parameters, for an output folder."""


@dataclass(frozen=True)
class _Board:
    """What a leaderboard is made of."""

    records: list[TrialRecord]
    directions: list[str]
    objectives: list[str]


def conclude(
    run: StudyRun, queue: TrialQueue, objectives: list[str], directions: list[str], compose: Compose
) -> StudyResult:
    """Name the winner, score it on the test split beside the untuned model, and keep adapter, leaderboard and plots.

    May be repeated: what was done is done again the same way, and nothing is judged or registered twice.

    Raises:
        StudyError: No trial was completed.
        LorahydraError: The winner cannot be scored.
    """
    # Two processes may have ended their last trials together; the second one finds everything done.
    with study_lock(queue.study._storage, f"the end of {queue.study.study_name}"):
        return _conclude(run, queue, objectives, directions, compose)


def _conclude(
    run: StudyRun, queue: TrialQueue, objectives: list[str], directions: list[str], compose: Compose
) -> StudyResult:
    records = queue.records()
    known = queue.study.user_attrs.get(RESULT, {})
    finished = sum(record.counts for record in records)
    complete = sum(record.state is State.COMPLETE for record in records)
    # One that had failed may be complete since: its answers were judged again.
    if known.get("finished") == finished and known.get("complete", complete) == complete:
        logger.info("Study %s has its %d trials: nothing is left to do", queue.study.study_name, finished)
        scores, best = None, next(record for record in records if record.number == known["best"])
    else:
        _wait_for_ends(run, records)
        run.close_children(run.run_id)  # one whose making was answered too late is nobody's
        best = _winner(run, records, directions, objectives)
        raise_if_interrupted()
        config = compose(best.params, run.folder)
        adapter = _kept_adapter(run, best)
        from lorahydra.sweep.winner import score_winner

        scores = score_winner(run, config, adapter)
        raise_if_interrupted()
        known = {"best": best.number, "finished": finished, "complete": complete, "test": facts_of(scores)}
        _record(run, queue, best, config, scores, _Board(records, directions, objectives))
        raise_if_interrupted()
        queue.study.set_user_attr(RESULT, known)
    with postponed():
        run.close(State.COMPLETE)
    result = StudyResult(
        study=queue.study.study_name,
        folder=run.folder,
        best=best,
        trials=ranked(records, directions),
        adapter=run.folder / "best",
        run_id=run.run_id,
        test=FinalScores.from_facts(known.get("test", {})),
        facts=known,
    )
    _show(result, run, directions, objectives, scores)
    return result


def _wait_for_ends(run: StudyRun, records: list[TrialRecord]) -> None:
    """Let other processes send what their last trials recorded: a trial is told to the study before that."""
    deadline = time.monotonic() + run.config.tracking.retry_seconds + 10
    for record in records:
        while record.folder is not None and record.folder.is_dir() and time.monotonic() < deadline:
            if not patiently(run.config.tracking, functools.partial(sync, record.folder)).busy:
                break
            time.sleep(0.2)


def _winner(run: StudyRun, records: list[TrialRecord], directions: list[str], objectives: list[str]) -> TrialRecord:
    best = best_so_far(records, directions)
    if best is None:
        failures = [record.failure for record in records if record.failure]
        reason = f"; the last failure: {failures[-1]}" if failures else ""
        raise StudyError(f"no trial of the study was completed, so there is no winner{reason}")
    judge = run.config.judge
    complete = [record for record in records if record.state is State.COMPLETE]
    if judge.name == "none" or objectives != ["combined"] or judge.finalists < 2 or len(complete) < 2:
        return best
    own = {name.lstrip("+").partition(".")[0] for record in complete for name in record.params}
    if own & {"judge", "evaluation", "seed"}:
        logger.warning("No finalists are judged: the search decides how trials are scored, so they do not compare")
        return best
    return _best_finalist(run, complete, best)


def _best_finalist(run: StudyRun, complete: list[TrialRecord], best: TrialRecord) -> TrialRecord:
    """The best of the finalists, judged on all validation examples; `best` is the best one so far."""
    from lorahydra.trial.finalists import judge_finalists

    places = {record.folder: record for record in complete if record.folder is not None and record.folder.is_dir()}
    if len(places) < len(complete):
        logger.warning("%d trials ran on other machines and cannot be finalists here", len(complete) - len(places))
    if best.folder not in places:
        return best
    scores = {folder: record.combined for folder, record in places.items() if record.combined is not None}
    ranking = judge_finalists(list(places), settings=run.config, scores=scores, tracking_uri=run.config.tracking.uri)
    winner = places[ranking[0].trial.folder]
    logger.info(
        "Finalists on all examples: %s",
        ", ".join(f"trial {places[f.trial.folder].number} {f.tuned.combined.mean:.4f}" for f in ranking),
    )
    return winner


def _kept_adapter(run: StudyRun, best: TrialRecord) -> Path:
    """Copy the winner's adapter to `best/` in the study's folder; from MLflow where another machine trained it."""
    target = run.folder / "best"
    source = None if best.folder is None else best.folder / ADAPTER_DIR
    if source is not None and source.is_dir():
        with replaced_dir(target) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        return target
    if best.run_id is None or not run.config.tracking.log_adapter:
        raise StudyError(
            f"the adapter of the best trial is not here ({source}), and not in MLflow (tracking.log_adapter=false): "
            "copy the folder here, or finish the study where the trial was run, with `lorahydra studies resume`"
        )
    logger.info("Trial %d was run on another machine: its adapter comes from MLflow", best.number)
    fetch_folder(run.config.tracking, best.run_id, ADAPTER_DIR, target)
    return target


def _record(
    run: StudyRun,
    queue: TrialQueue,
    best: TrialRecord,
    config: ExperimentConfig,
    test: TrialScores | None,
    board: _Board,
) -> None:
    folder, name = run.folder, queue.study.study_name
    with atomic_file(folder / LEADERBOARD_FILE) as temporary:
        temporary.write_text(leaderboard_csv(board.records, board.directions, board.objectives), encoding="utf-8")
    write_optimization_results(queue, folder, best)
    for file in (LEADERBOARD_FILE, RESULTS_FILE):
        run.run.artifact(folder / file, file)
    # As tags: more trials may find a better one, and MLflow's params never change.
    chosen = {f"best.{key}": str(value) for key, value in best.params.items()}
    run.run.tags({Tag.BEST_TRIAL: str(best.number), Tag.BEST_RUN: best.run_id or "", **chosen})
    if run.config.tracking.log_model != "none":
        write_model_files(folder / "best", with_base=run.config.tracking.log_base)
    registered = _register(run, best, config, test, name)
    run.run.note(
        study_note(
            board.records,
            board.directions,
            board.objectives,
            study=name,
            experiment_id=run.run.experiment_id,
            test=test,
            registered=registered,
            warnings=run.warnings,
        )
    )
    _draw(run, queue, board.objectives)


def _draw(run: StudyRun, queue: TrialQueue, objectives: list[str]) -> None:
    """Make the plots; a study has its winner without them."""
    try:
        with replaced_dir(run.folder / STUDY_DIR) as temporary:
            write_plots(queue.study, temporary, objectives)
    except Exception as error:
        # Plotting libraries fail in ways of their own.
        logger.warning("The plots of the study are missing: %s: %s", type(error).__name__, error)
        logger.debug("Plots", exc_info=True)
        return
    run.run.artifact(run.folder / STUDY_DIR, STUDY_DIR)


def _register(
    run: StudyRun, best: TrialRecord, config: ExperimentConfig, test: TrialScores | None, study: str
) -> tuple[str, str] | None:
    """Register the winner's adapter; its name and version, or None where it cannot be."""
    tracking = run.config.tracking
    if best.run_id is None or not tracking.log_adapter:
        logger.info("The adapter is not registered: tracking.log_adapter=false")
        return None
    name = registered_name(f"lorahydra-{study}")
    try:
        if tracking.log_model == "winner":
            add_model_files(tracking, best.run_id, run.folder / "best")
        recorded = patiently(tracking, functools.partial(read_run, tracking, best.run_id))
        datasets = {dataset.context: dataset.digest for dataset in recorded.datasets}
        description = model_description(
            config,
            best,
            study=study,
            experiment_id=run.run.experiment_id,
            study_run=run.run_id,
            datasets=datasets,
            test=test,
        )
        version = register_model(
            tracking,
            best.run_id,
            name,
            artifact=ADAPTER_DIR,
            description=description,
            tags={Tag.TRIAL_NUMBER: str(best.number), Tag.STUDY: study},
        )
    except StoreAwayError:
        raise  # the study ends where it is, and registers its winner when it goes on
    except (TrackingError, OutputError) as error:
        # The winner is known and lies in its folder; a store without a registry must not fail the study.
        logger.warning("The adapter was not registered: %s", error)
        return None
    logger.info("Registered as %s, version %s, alias champion", name, version)
    return name, version


def _show(
    result: StudyResult, run: StudyRun, directions: list[str], objectives: list[str], scores: TrialScores | None
) -> None:
    from lorahydra.trial.summary import write_scores

    screen = console()
    write_leaderboard(screen, result.trials, directions, objectives)
    if scores is not None:
        write_scores(screen, scores.tuned, scores.baseline, scores.gain, split="test")
    elif result.test is not None:
        logger.info("Test split, scored earlier: %s", result.test)
    logger.info("Best: trial %d, %s", result.best.number, dict(result.best_params))
    logger.info("Adapter: %s", result.adapter)
    logger.info("MLflow run %s: %s", run.run_id, run.run.url)
