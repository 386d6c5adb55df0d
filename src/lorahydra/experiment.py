"""One trial, end to end: prepare → train → answer → judge → track.

```python
result = run_trial(compose(["experiment=demo", "lora.r=8"]))
```
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lorahydra.answers import TrialAnswers, forget_answers, save_answers
from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Judging, answer, answer_untuned
from lorahydra.finishing import TrialJudging, TrialScores, finish_trial, rejudge_hint
from lorahydra.modeling.adapters import load_adapter
from lorahydra.names import Kind, Metric, State
from lorahydra.preparation import Prepared, prepare
from lorahydra.progress import Progress
from lorahydra.recording import record_adapter, record_answers, record_setup, run_name
from lorahydra.summary import write_summary
from lorahydra.tracking import TrackedRun, check_store, start_run
from lorahydra.training import TrainingJob, train

__all__ = ["PendingTrial", "TrialResult", "begin_trial", "run_trial"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """What a trial found."""

    run_id: str
    """MLflow run."""
    adapter: Path
    """Folder of the adapter, in PEFT's format."""
    scores: TrialScores

    @property
    def combined(self) -> float:
        """The objective of a study."""
        return self.scores.tuned.combined.mean


def run_trial(
    config: ExperimentConfig, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> TrialResult:
    """Train one adapter, score it beside the untuned model, and record all of it in MLflow.

    Args:
        config: The whole experiment.
        overrides: What the user changed, for the record.
        progress: Where to show the progress.

    Raises:
        LorahydraError: What went wrong, in one line; the run, if it was started, is closed as failed. Where the
            judge is at fault, the adapter and the answers are kept, and `lorahydra judges rejudge` goes on from there.
    """
    return begin_trial(config, overrides=overrides, progress=progress).result()


def begin_trial(
    config: ExperimentConfig, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> PendingTrial:
    """The part of a trial that needs this machine's processor; the judge may still be at work when it returns.

    A search that does not need the result at once begins its next trial meanwhile. Arguments and errors are those of
    `run_trial`.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    output_dir = Path(config.output_dir)

    check_store(config.tracking)
    prepared = prepare(config)
    judging = _judging(prepared, config)
    run = start_run(config.tracking, output_dir=output_dir, kind=Kind.SINGLE, run_name=run_name(config))
    with run.closed_on_error(judging.stop):
        record_setup(run, config, overrides, prepared)
        forget_answers(output_dir)

        job = TrainingJob(config.lora, config.training, config.seed, output_dir, run.metrics)
        [trained] = train(prepared.base, [job], prepared.train_tokens, prepared.eval_tokens, progress)
        record_adapter(run, config, trained)

        base, examples, scorer, settings = prepared.base, prepared.eval_set, prepared.scorer, config.evaluation
        with load_adapter(base, trained.folder) as model:
            tuned = answer(model, base, examples, scorer, settings, judging=judging.tuned, progress=progress)
        logger.info("Trial 0: params=%s, BERTScore=%.4f", _searched(config, overrides), tuned.bertscore_f1)
        untuned = None
        if settings.baseline:
            untuned = answer_untuned(base, examples, scorer, settings, judging=judging.untuned, progress=progress)

        answers = TrialAnswers(examples, tuned, untuned, trained.steps)
        if prepared.session is not None:
            save_answers(output_dir, run.run_id, config, answers)
        record_answers(run, answers)
    return PendingTrial(config, run, prepared, trained.folder, answers, judging, progress, started)


@dataclass(frozen=True)
class PendingTrial:
    """A trial whose answers are there and whose verdicts may not be; made by `begin_trial`."""

    config: ExperimentConfig
    run: TrackedRun
    prepared: Prepared
    adapter: Path
    answers: TrialAnswers
    judging: TrialJudging
    progress: Progress
    started: float
    """`time.perf_counter()` at the start."""

    def result(self) -> TrialResult:
        """Wait for the judge, score, and close the run.

        Raises:
            LorahydraError: Too few verdicts; the run is closed as failed.
        """
        run = self.run
        with run.closed_on_error(self.judging.stop), rejudge_hint(Path(self.config.output_dir)):
            scores = finish_trial(run, self.config, self.prepared.session, self.answers, self.judging, self.progress)
            run.metrics({Metric.TIME_TOTAL: time.perf_counter() - self.started})
        run.finish(State.COMPLETE)
        write_summary(Console(), self.answers.examples, scores.tuned, scores.baseline, scores.gain)
        logger.info("MLflow run %s: %s", run.run_id, run.url)
        return TrialResult(run.run_id, self.adapter, scores)


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
