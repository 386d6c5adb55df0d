"""Scores an adapter that already exists beside its base model: a study's winner, or one that a user names.

```python
scores = evaluate_adapter(compose(["data=local", "data.train_file=my.jsonl"]), Path("best"))
```
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import EvaluationSet, Judging
from lorahydra.inference.adapted_model import warn_of_another_base
from lorahydra.modeling.metadata import read_metadata
from lorahydra.names import EVAL, TEST, Kind, Metric, Tag
from lorahydra.tracking import TrackedRun, check_store, start_run
from lorahydra.trial.forgetting import measure_forgetting
from lorahydra.trial.predict import predict_both
from lorahydra.trial.prepare import Prepared, prepare
from lorahydra.trial.record import record_setup
from lorahydra.trial.score import TrialScores, score
from lorahydra.trial.summary import write_scores
from lorahydra.utils.progress import Progress, console

__all__ = ["evaluate_adapter", "score_adapter"]

logger = logging.getLogger(__name__)


def evaluate_adapter(config: ExperimentConfig, adapter: Path, *, overrides: Sequence[str] = ()) -> TrialScores:
    """Score an adapter on the test split, or on the validation split if there is none, in a new run.

    Args:
        config: Data, base model, judge; nothing is trained.
        adapter: Folder in PEFT's format.
        overrides: The user's overrides, for the record.
    """
    check_store(config.tracking)
    metadata = read_metadata(adapter)
    prepared = prepare(config)
    warn_of_another_base(prepared.base, metadata)
    examples, prefix = (prepared.test_set, TEST) if prepared.test_set is not None else (prepared.eval_set, EVAL)
    name = config.tracking.run_name or f"evaluation of {adapter.resolve().name}"
    with start_run(config.tracking, output_dir=Path(config.output_dir), kind=Kind.SINGLE, run_name=name) as run:
        run.tags({Tag.EVALUATES: metadata.run_id or str(adapter.resolve())})
        record_setup(run, config, overrides, prepared)
        run.metrics({Metric.TIME_LOAD: prepared.seconds})
        scores = score_adapter(run, config, prepared, examples, adapter, prefix)
    split = "test" if prefix == TEST else "validation"
    write_scores(console(), scores, split=split)
    logger.info("MLflow run %s: %s", run.run_id, run.url)
    return scores


def score_adapter(
    run: TrackedRun, config: ExperimentConfig, prepared: Prepared, examples: EvaluationSet, adapter: Path, prefix: str
) -> TrialScores:
    """Let the adapter in a folder and the untuned baseline answer, score both, and record the scores in `run`.

    The `prefix` of the metrics, `TEST` or `EVAL`, also decides how many of the examples are judged.
    """
    progress = Progress()
    n_examples = config.judge.test_examples if prefix == TEST else config.judge.n_examples
    with Judging(prepared.session, examples, config.seed, n_examples=n_examples) as judging:
        predictions = predict_both(config, prepared, examples, adapter, judging, progress, description="Testing")
        forgetting = measure_forgetting(config, prepared, adapter, progress)
        return score(run, config, predictions, judging, progress, prefix, forgetting)
