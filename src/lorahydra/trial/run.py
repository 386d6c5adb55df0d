"""One trial, end to end: prepare → train → answer → judge → track.

```python
result = run_trial(compose(["experiment=demo", "lora.r=8"]))
```
A study passes the trial's `place` in it, and is told what happens while it happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Judging, answer, answer_untuned
from lorahydra.modeling.generation import write_greedy_settings
from lorahydra.modeling.lora import load_adapter
from lorahydra.modeling.metadata import write_metadata
from lorahydra.names import EVAL, Kind, Metric, Score, State, Tag, scored
from lorahydra.tracking import TrackedRun, check_store, start_run
from lorahydra.training import OnMetrics, TrainedAdapter, TrainingJob, train
from lorahydra.trial.prepare import Prepared, origin_of, prepare
from lorahydra.trial.record import record_adapter, record_answers, record_description, record_setup, run_name
from lorahydra.trial.saved_answers import HomeStudy, TrialAnswers, forget_answers, save_answers
from lorahydra.trial.score import (
    StudyPlace,
    TrialJudging,
    TrialResult,
    finish_trial,
    rejudge_hint,
)
from lorahydra.trial.summary import write_summary
from lorahydra.utils.interrupts import noticed, postponed, raise_if_interrupted
from lorahydra.utils.progress import Progress, console

__all__ = ["PendingTrial", "TrialResult", "begin_trial", "run_trial"]

logger = logging.getLogger(__name__)


def run_trial(
    config: ExperimentConfig,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    place: StudyPlace | None = None,
) -> TrialResult:
    """Train one adapter, score it beside the untuned model, and record all of it in MLflow.

    Args:
        config: The whole experiment.
        overrides: What the user changed, for the record.
        progress: Where to show the progress.
        place: The trial's place in a study; none for a trial of its own.

    Raises:
        TrialPruned: The study ended the trial early.
        LorahydraError: What went wrong, in one line; the run, if it was started, is closed as failed. Where the
            judge is at fault, the adapter and the answers are kept, and `lorahydra judges rejudge` goes on from there.
    """
    return begin_trial(config, overrides=overrides, progress=progress, place=place).result()


def begin_trial(
    config: ExperimentConfig,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    place: StudyPlace | None = None,
) -> PendingTrial:
    """The part of a trial that needs this machine's processor; the judge may still be at work when it returns.

    A search that does not need the result at once begins its next trial meanwhile. Arguments and errors are those of
    `run_trial`.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    output_dir = Path(config.output_dir)

    check_store(config.tracking, waits=place is not None)
    prepared = prepare(config)
    judging = _judging(prepared, config)
    run = _start(config, place)
    with run.closed_on_error(judging.stop), noticed():
        record_setup(run, config, overrides, prepared)
        number, params = (0, _searched(config, overrides)) if place is None else (place.number, place.params)
        record_description(run, params, prepared.splits.report.warnings)
        forget_answers(output_dir)

        job = TrainingJob(config.lora, config.training, config.seed, output_dir, _watched(run, place))
        [trained] = train(prepared.base, [job], prepared.train_tokens, prepared.eval_tokens, progress)
        base, chat, examples = prepared.base, prepared.chat, prepared.eval_set
        scorer, settings = prepared.scorer, config.evaluation
        write_metadata(trained.folder, origin_of(config, prepared, run.run_id))
        write_greedy_settings(trained.folder, base.model, base.tokenizer, chat.end_tokens)
        record_adapter(run, config, trained)

        with load_adapter(base, trained.folder) as model:
            tuned = answer(model, base, chat, examples, scorer, settings, judging=judging.tuned, progress=progress)
        logger.info("Trial %d: params=%s, BERTScore=%.4f", number, params, tuned.bertscore_f1)
        untuned = None
        if settings.baseline:
            untuned = answer_untuned(base, chat, examples, scorer, settings, judging=judging.untuned, progress=progress)

        answers = TrialAnswers(
            examples, tuned, untuned, trained.steps, trained.eval_loss, time.perf_counter() - started
        )
        if prepared.session is not None:
            study = None if place is None else HomeStudy(place.study_name, place.storage)
            save_answers(output_dir, run.run_id, config, answers, study)
        record_answers(run, answers)
    return PendingTrial(config, run, prepared, trained, answers, judging, progress, started, place)


@dataclass(frozen=True)
class PendingTrial:
    """A trial whose answers are there and whose verdicts may not be; made by `begin_trial`."""

    config: ExperimentConfig
    run: TrackedRun
    prepared: Prepared
    trained: TrainedAdapter
    answers: TrialAnswers
    judging: TrialJudging
    progress: Progress
    started: float
    """`time.perf_counter()` at the start."""
    place: StudyPlace | None = None

    def result(self) -> TrialResult:
        """Wait for the judge, score, and close the run.

        Raises:
            LorahydraError: Too few verdicts; the run is closed as failed.
        """
        run = self.run
        hint = rejudge_hint(Path(self.config.output_dir), in_study=self.place is not None)
        with run.closed_on_error(self.judging.stop), hint:
            scores = finish_trial(run, self.config, self.prepared.session, self.answers, self.judging, self.progress)
            seconds = time.perf_counter() - self.started
            run.metrics({Metric.TIME_TOTAL: seconds})
            result = TrialResult(run.run_id, self.trained.folder, scores, self.trained.eval_loss, seconds)
            raise_if_interrupted()
            # Together, so that the study and MLflow say the same.
            with postponed():
                if self.place is not None:
                    self.place.finished(result)
                run.finish(State.COMPLETE)
        if self.place is None:  # a study shows its leaderboard instead
            write_summary(console(), self.answers.examples, scores.tuned, scores.baseline, scores.gain)
        logger.info("MLflow run %s: %s", run.run_id, run.url)
        return result


def _start(config: ExperimentConfig, place: StudyPlace | None) -> TrackedRun:
    output_dir, name = Path(config.output_dir), run_name(config)
    if place is None:
        return start_run(config.tracking, output_dir=output_dir, kind=Kind.SINGLE, run_name=name)
    run = start_run(
        config.tracking,
        output_dir=output_dir,
        kind=Kind.TRIAL,
        run_name=f"{place.number}: {name}",
        tags={Tag.STUDY: place.study_name, Tag.TRIAL_NUMBER: str(place.number)},
        parent_run_id=place.parent_run_id,
    )
    with run.closed_on_error(lambda: None):
        place.started(run.run_id, output_dir)
    return run


def _watched(run: TrackedRun, place: StudyPlace | None) -> OnMetrics:
    """Where training metrics go: to MLflow, and validation losses to the study as well."""
    if place is None:
        return run.metrics

    def on_metrics(values: Mapping[str, float], step: int) -> None:
        run.metrics(values, step)
        loss = values.get(scored(EVAL, Score.LOSS))
        if loss is not None:
            place.measured(loss)

    return on_metrics


def _judging(prepared: Prepared, config: ExperimentConfig) -> TrialJudging:
    session, examples = prepared.session, prepared.eval_set
    if session is None:
        return TrialJudging()
    untuned = Judging(session, examples, config.seed) if config.evaluation.baseline else None
    return TrialJudging(Judging(session, examples, config.seed), untuned)


def _searched(config: ExperimentConfig, overrides: Sequence[str]) -> dict[str, object]:
    """The hyperparameters among the overrides, with the values they have."""
    values = flatten(config)
    keys = (override.partition("=")[0].lstrip("+") for override in overrides)
    return {key: values[key] for key in keys if key in values and key.startswith(("lora.", "training."))}
