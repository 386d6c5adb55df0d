"""The end of a study: names the winner, scores it on the test split, and saves the results."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import OutputError, StoreUnavailableError, TrackingError
from lorahydra.names import CHAMPION, LEADERBOARD_FILE, RESULTS_FILE, STUDY_DIR, Metric, Stage, State, Tag
from lorahydra.sweep.choice import Choice, with_choice
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.leaderboard import leaderboard_csv, write_leaderboard
from lorahydra.sweep.mlflow_notes import model_description
from lorahydra.sweep.objective import write_optimization_results
from lorahydra.sweep.plots import write_plots
from lorahydra.sweep.ranking import ranked
from lorahydra.sweep.repeats import Compose, Repeats, end_dead_repeats, repeats_are_done
from lorahydra.sweep.stages import begin_stage, end_stages
from lorahydra.sweep.stopping import ENDED, ended_early
from lorahydra.sweep.storage import end_lock
from lorahydra.sweep.study_result import FinalScores, StudyResult, facts_of
from lorahydra.sweep.study_run import StudyRun
from lorahydra.sweep.study_store import RESULT, is_concluded
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.sweep.winner import choose_winner, keep_adapter, score_winner
from lorahydra.tracking import (
    add_model_files,
    patiently,
    read_run,
    register_model,
    registered_name,
    sync,
    write_model_files,
)
from lorahydra.trial.score import TrialScores
from lorahydra.trial.summary import write_scores
from lorahydra.utils.files import atomic_file, replaced_dir
from lorahydra.utils.interrupts import postponed, raise_if_interrupted
from lorahydra.utils.progress import console

__all__ = ["conclude"]

logger = logging.getLogger("lorahydra.sweep")


def conclude(
    run: StudyRun, compose: Compose, largest_pack: Callable[[str], int], *, wait: bool = True
) -> StudyResult | None:
    """Name the winner, score it on the test split beside the untuned model, and keep adapter, leaderboard and plots.

    It may be repeated: each step gives the same result again, and nothing is trained, judged or registered twice.

    Args:
        run: The study.
        compose: Makes the experiment of each trial.
        largest_pack: How many adapters may be trained side by side on a kind of device.
        wait: While another process does it.

    Returns:
        The result; None if another process names the winner, and this one does not wait.

    Raises:
        StudyError: No trial was completed.
        LorahydraError: The winner cannot be scored.
    """
    study = run.queue.study
    storage, name = storage_of(study), study.study_name
    # Two processes may have ended their last trials together; the second one finds everything done.
    with ExitStack() as held:
        try:
            held.enter_context(end_lock(storage, name, wait=False))
        except TimeoutError:
            if not wait:
                logger.info("Study %s: another process names the winner", name)
                run.close(None)
                return None
            logger.info("Study %s: another process names the winner; waiting until it is done", name)
            held.enter_context(end_lock(storage, name))
        return _conclude(run, compose, largest_pack)


def _conclude(run: StudyRun, compose: Compose, largest_pack: Callable[[str], int]) -> StudyResult:
    study, records, scores = run.queue.study, run.queue.records(), None
    facts = study.user_attrs.get(RESULT, {})
    seeds = run.config.search.seeds
    finished, early = sum(record.counts for record in records), ended_early(study.user_attrs)
    if is_concluded(facts, records) and facts.get("seeds", 0) >= seeds:
        if early is None:
            logger.info("Study %s has its %d trials: nothing is left to do", study.study_name, finished)
        else:
            logger.info(
                "Study %s ended %s; search.stop_when_sure=false, or a higher hydra.sweeper.n_trials, lets it go on",
                *(study.study_name, early),
            )
        best = next(record for record in records if record.number == facts["best"])
        if not (run.folder / "best").is_dir() and best.run_id is not None and run.config.tracking.log_adapter:
            keep_adapter(run, best)  # the winner was named on another machine
        choice = Choice.from_facts(facts.get("choice"))
    else:
        _wait_for_ends(run, records)
        end_dead_repeats(study)
        run.close_children(run.run_id)  # a run that MLflow made after its process had given up belongs to no trial
        repeats = Repeats(study, run.run_id, run.folder, run.config, compose, largest_pack)
        begin_stage(study, Stage.CHOOSING)
        best, choice = choose_winner(run, records, repeats if seeds else None)
        raise_if_interrupted()
        config = compose(best.params, run.folder)
        begin_stage(study, Stage.TESTING)
        scores = score_winner(run, config, keep_adapter(run, best))
        raise_if_interrupted()
        complete = sum(record.state is State.COMPLETE for record in records)
        facts = {"best": best.number, "finished": finished, "complete": complete, "test": facts_of(scores)}
        facts["test_rows"] = 0 if scores is None else len(scores.tuned.predictions.texts)
        facts |= {"seeds": seeds} if seeds and repeats_are_done(study) else {}
        if choice is not None:
            facts["choice"] = choice.facts
        begin_stage(study, Stage.SAVING)
        _record(run, records, best, choice, config, scores)
        raise_if_interrupted()
        study.set_user_attr(RESULT, facts)
        end_stages(study)
    with postponed():
        run.close(State.COMPLETE)
    result = StudyResult(
        study=study.study_name,
        folder=run.folder,
        best=best,
        trials=ranked(with_choice(records, choice, best.number), run.directions),
        adapter=run.folder / "best",
        run_id=run.run_id,
        test=FinalScores.from_facts(facts.get("test", {})),
        choice=choice,
        ended_early=early,
    )
    _show(result, run, scores)
    return result


def _wait_for_ends(run: StudyRun, records: Sequence[TrialRecord]) -> None:
    """Wait until other processes have sent the records of their last trials, which end in the study before that."""
    deadline = time.monotonic() + run.config.tracking.retry_seconds + 10
    for record in records:
        while record.folder is not None and record.folder.is_dir() and time.monotonic() < deadline:
            if not patiently(run.config.tracking, functools.partial(sync, record.folder)).busy:
                break
            time.sleep(0.2)


def _record(
    run: StudyRun,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    choice: Choice | None,
    config: ExperimentConfig,
    test: TrialScores | None,
) -> None:
    records = with_choice(records, choice, best.number)
    with atomic_file(run.folder / LEADERBOARD_FILE) as temporary:
        temporary.write_text(leaderboard_csv(records, run.directions, run.objectives), encoding="utf-8")
    write_optimization_results(run.queue, run.folder, best)
    for file in (LEADERBOARD_FILE, RESULTS_FILE):
        run.run.artifact(run.folder / file, file)
    # As tags: more trials may find a better one, and MLflow's params never change.
    chosen = {f"best.{key}": str(value) for key, value in best.params.items()}
    run.run.tags({Tag.BEST_TRIAL: str(best.number), Tag.BEST_RUN: best.run_id or "", **chosen})
    attributes = run.queue.study.user_attrs
    if ENDED in attributes:  # empty if it has gone on since
        run.run.tags({Tag.ENDED_EARLY: ended_early(attributes) or ""})
    if choice is not None:
        run.run.tags({Tag.CHOICE_SET: ", ".join(map(str, choice.set))})
        run.run.metrics(
            {
                Metric.CHOICE_P_BEST: choice.p_best[choice.winner],
                Metric.CHOICE_REGRET_BOUND: choice.regret_bound,
                Metric.CHOICE_SET_SIZE: len(choice.set),
            }
        )
    if run.config.tracking.log_model != "none":
        write_model_files(run.folder / "best", with_base=run.config.tracking.log_base)
    run.describe(records, choice=choice, test=test, registered=_register(run, best, config, test))
    _draw(run, best.number)


def _draw(run: StudyRun, winner: int) -> None:
    """Make the plots; a study has its winner without them."""
    try:
        with replaced_dir(run.folder / STUDY_DIR) as temporary:
            write_plots(run.queue.study, temporary, run.objectives, winner)
    except Exception as error:
        # Plotting libraries may raise any kind of error.
        logger.warning("The plots of the study are missing: %s: %s", type(error).__name__, error)
        logger.debug("Plots", exc_info=True)
        return
    run.run.artifact(run.folder / STUDY_DIR, STUDY_DIR)


def _register(
    run: StudyRun, best: TrialRecord, config: ExperimentConfig, test: TrialScores | None
) -> tuple[str, str] | None:
    """Register the winner's adapter; returns its name and version, or None if it cannot be registered."""
    tracking, study = run.config.tracking, run.queue.study.study_name
    if best.run_id is None or not tracking.log_adapter:
        logger.info("The adapter is not registered: tracking.log_adapter=false")
        return None
    name = registered_name(f"lorahydra-{study}")
    try:
        if tracking.log_model == "winner":
            add_model_files(tracking, best.run_id, run.folder / "best")
        recorded = patiently(tracking, functools.partial(read_run, tracking, best.run_id))
        description = model_description(
            config,
            best,
            study=study,
            experiment_id=run.run.experiment_id,
            study_run=run.run_id,
            datasets={dataset.context: dataset.digest for dataset in recorded.datasets},
            test=test,
        )
        version = register_model(
            tracking,
            best.run_id,
            name,
            description=description,
            tags={Tag.TRIAL_NUMBER: str(best.number), Tag.STUDY: study},
        )
    except StoreUnavailableError:
        raise  # the study stops here, and registers its winner when it is resumed
    except (TrackingError, OutputError) as error:
        # The winner is named and is in its folder; a store without a registry must not fail the study.
        logger.warning("The adapter was not registered: %s", error)
        return None
    logger.info("Registered as %s, version %s, alias %s", name, version, CHAMPION)
    return name, version


def _show(result: StudyResult, run: StudyRun, scores: TrialScores | None) -> None:
    screen = console()
    write_leaderboard(screen, result.trials, run.directions, run.objectives)
    if scores is not None:
        write_scores(screen, scores, split="test")
    elif result.test is not None:
        logger.info("Test split, scored earlier: %s", result.test)
    logger.info("Best: trial %d, %s", result.best.number, dict(result.best_params))
    if result.choice is not None:
        logger.info("%s", result.choice.sentences)
    logger.info("Adapter: %s", result.adapter)
    logger.info("MLflow run %s: %s", run.run_id, run.run.url)
