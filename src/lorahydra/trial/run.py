"""One trial, end to end: prepare → train → predict → judge and score → record.

```python
result = run_trial(compose(["experiment=demo", "lora.r=8"]))
```
A study passes the trial's `place` in it, through which it is told of losses and results as they arise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lorahydra.config.schema import ExperimentConfig
from lorahydra.training import train
from lorahydra.trial.place import StudyPlace, TrialResult
from lorahydra.trial.steps import Trial
from lorahydra.trial.summary import write_summary
from lorahydra.utils.progress import Progress, console

__all__ = ["TrialResult", "run_trial"]

logger = logging.getLogger(__name__)


def run_trial(
    config: ExperimentConfig, *, overrides: Sequence[str] = (), place: StudyPlace | None = None
) -> TrialResult:
    """Train one adapter, score it beside the untuned baseline, and record all of it in MLflow.

    Args:
        config: The whole experiment.
        overrides: The user's overrides, for the record.
        place: The trial's place in a study; None for a trial outside a study.

    Raises:
        TrialPruned: The study ended the trial early.
        LorahydraError: The trial failed; the message is one line. The run, if it was started, is closed as failed. If
            the judge is at fault, adapter and predictions are kept, and `lorahydra judges rejudge` goes on from there.
    """
    with Trial(config, overrides, Progress(), place) as trial:
        trial.open()
        prepared = trial.prepared
        [trained] = train(prepared.base, [trial.job], prepared.train_tokens, prepared.eval_tokens)
        trial.predict(trained)
        result = trial.score()
    if place is None:  # a study shows its leaderboard instead
        write_summary(console(), prepared.eval_set, result.scores)
    logger.info("MLflow run %s: %s", result.run_id, trial.run.url)
    return result
