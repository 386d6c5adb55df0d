"""One trial, end to end: prepare → train → evaluate → track.

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

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Evaluation, evaluate, evaluate_baseline
from lorahydra.evaluation.scoring import Gain, gain
from lorahydra.modeling.adapters import load_adapter
from lorahydra.names import Kind, Metric, State
from lorahydra.preparation import prepare
from lorahydra.progress import Progress
from lorahydra.recording import record_adapter, record_results, record_setup, run_name
from lorahydra.summary import write_summary
from lorahydra.tracking import check_store, start_run
from lorahydra.training import TrainingJob, train

__all__ = ["TrialResult", "run_trial"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """What a trial found."""

    run_id: str
    """MLflow run."""
    adapter: Path
    """Folder of the adapter, in PEFT's format."""
    tuned: Evaluation
    baseline: Evaluation | None
    """The untuned model on the same examples; None when it was not asked for."""
    gain: Gain | None
    """Tuned minus untuned `combined`."""

    @property
    def combined(self) -> float:
        """The objective of a study."""
        return self.tuned.combined.mean


def run_trial(
    config: ExperimentConfig, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> TrialResult:
    """Train one adapter, score it beside the untuned model, and record all of it in MLflow.

    Args:
        config: The whole experiment.
        overrides: What the user changed, for the record.
        progress: Where to show the progress.

    Raises:
        LorahydraError: What went wrong, in one line; the run, if it was started, is closed as failed.
    """
    started = time.perf_counter()
    progress = progress or Progress()
    output_dir = Path(config.output_dir)
    logger.info("LLM judge off: BERTScore only")

    check_store(config.tracking)
    prepared = prepare(config)
    with start_run(config.tracking, output_dir=output_dir, kind=Kind.SINGLE, run_name=run_name(config)) as run:
        record_setup(run, config, overrides, prepared)

        job = TrainingJob(config.lora, config.training, config.seed, output_dir, run.metrics)
        [trained] = train(prepared.base, [job], prepared.train_tokens, prepared.eval_tokens, progress)
        record_adapter(run, config, trained)

        base, examples, scorer = prepared.base, prepared.eval_set, prepared.scorer
        with load_adapter(base, trained.folder) as model:
            tuned = evaluate(model, base, examples, scorer, config.evaluation, seed=config.seed, progress=progress)
        _log_scores(tuned, overrides)

        baseline = helped = None
        if config.evaluation.baseline:
            baseline = evaluate_baseline(base, examples, scorer, config.evaluation, seed=config.seed, progress=progress)
            helped = gain(tuned.example_scores, baseline.example_scores, config.evaluation, config.seed)

        record_results(run, prepared, trained, tuned, baseline, helped)
        run.metrics({Metric.TIME_TOTAL: time.perf_counter() - started})
        run.finish(State.COMPLETE)

    write_summary(Console(), examples, tuned, baseline, helped)
    logger.info("MLflow run %s: %s", run.run_id, run.url)
    return TrialResult(run.run_id, trained.folder, tuned, baseline, helped)


def _log_scores(tuned: Evaluation, overrides: Sequence[str]) -> None:
    logger.info("Trial 0: params=%s, BERTScore=%.4f", _searched(overrides), tuned.bertscore_f1)
    logger.info("Evaluation (no LLM judge): BERTScore=%.4f", tuned.bertscore_f1)
    if tuned.cut_answers:
        logger.warning(
            "%d of %d answers were cut at evaluation.max_new_tokens: raise it if answers are meant to be longer",
            tuned.cut_answers,
            len(tuned.answers),
        )


def _searched(overrides: Sequence[str]) -> dict[str, str]:
    """The hyperparameters among the overrides."""
    pairs = (override.split("=", 1) for override in overrides if "=" in override)
    return {key: value for key, value in pairs if key.startswith(("lora.", "training."))}
