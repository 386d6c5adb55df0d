"""One trial, end to end: prepare → train → predict → judge and score → record.

```python
result = run_trial(compose(["experiment=demo", "lora.r=8"]))
```
A study passes the trial's `place` in it, and hears of what happens while it happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Judging
from lorahydra.modeling.generation import write_greedy_settings
from lorahydra.modeling.metadata import write_metadata
from lorahydra.tracking import TrackedRun, check_store
from lorahydra.training import TrainedAdapter, TrainingJob, train
from lorahydra.trial.place import StudyPlace, TrialResult, end_trial, metrics_of, start_trial
from lorahydra.trial.predict import predict_both
from lorahydra.trial.prepare import Prepared, metadata_of, prepare
from lorahydra.trial.record import record_adapter, record_description, record_setup
from lorahydra.trial.rejudge import rejudge_hint
from lorahydra.trial.saved import SavedTrial, forget_trial, save_trial
from lorahydra.trial.score import score
from lorahydra.trial.summary import write_summary
from lorahydra.utils.interrupts import noticed
from lorahydra.utils.progress import Progress, console

__all__ = ["TrialResult", "run_trial"]

logger = logging.getLogger(__name__)


def run_trial(
    config: ExperimentConfig,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    place: StudyPlace | None = None,
) -> TrialResult:
    """Train one adapter, score it beside the untuned baseline, and record all of it in MLflow.

    Args:
        config: The whole experiment.
        overrides: What the user changed, for the record.
        progress: Where to show the progress.
        place: The trial's place in a study; None for a trial of its own.

    Raises:
        TrialPruned: The study ended the trial early.
        LorahydraError: What went wrong, in one line; the run, if it was started, is closed as failed. Where the
            judge is at fault, adapter and predictions are kept, and `lorahydra judges rejudge` goes on from there.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    folder = Path(config.output_dir)
    check_store(config.tracking, waits=place is not None)
    prepared = prepare(config)
    examples = prepared.eval_set
    judging = Judging(prepared.session, examples, config.seed)
    with start_trial(config, place) as run, judging, rejudge_hint(folder, in_study=place is not None), noticed():
        if place is not None:
            place.started(run.run_id, folder)
        number, params = (0, _searched(config, overrides)) if place is None else (place.number, place.params)
        record_setup(run, config, overrides, prepared)
        record_description(run, params, prepared.splits.report.warnings)
        forget_trial(folder)

        trained = _train(run, config, prepared, place, progress)
        predictions = predict_both(config, prepared, examples, trained.folder, judging, progress, steps=trained.steps)
        logger.info("Trial %d: params=%s, BERTScore=%.4f", number, params, predictions.tuned.bertscore_f1)
        if prepared.session is not None:  # before the judge is waited for
            seconds = time.perf_counter() - started
            home = (None, None) if place is None else (place.study_name, place.storage)
            save_trial(SavedTrial(folder, run.run_id, config, predictions, trained.eval_loss, seconds, *home))
        scores = score(run, config, predictions, judging, progress)
        result = TrialResult(run.run_id, trained.folder, scores, trained.eval_loss, time.perf_counter() - started)
        end_trial(run, result, place)
    if place is None:  # a study shows its leaderboard instead
        write_summary(console(), examples, scores)
    logger.info("MLflow run %s: %s", run.run_id, run.url)
    return result


def _train(
    run: TrackedRun, config: ExperimentConfig, prepared: Prepared, place: StudyPlace | None, progress: Progress
) -> TrainedAdapter:
    """Train the adapter, and record it with all that it takes to use it elsewhere."""
    base = prepared.base
    job = TrainingJob(config.lora, config.training, config.seed, Path(config.output_dir), metrics_of(run, place))
    [trained] = train(base, [job], prepared.train_tokens, prepared.eval_tokens, progress)
    write_metadata(trained.folder, metadata_of(config, prepared, run.run_id))
    write_greedy_settings(trained.folder, base.model, base.tokenizer, prepared.chat.end_tokens)
    record_adapter(run, config, trained)
    return trained


def _searched(config: ExperimentConfig, overrides: Sequence[str]) -> dict[str, object]:
    """The hyperparameters among the overrides, with their values."""
    values = flatten(config)
    keys = (override.partition("=")[0].lstrip("+") for override in overrides)
    return {key: values[key] for key in keys if key in values and key.startswith(("lora.", "training."))}
