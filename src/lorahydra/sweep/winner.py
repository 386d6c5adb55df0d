"""The winner and the untuned model on the test split, which no trial has seen."""

from __future__ import annotations

import logging
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.names import TEST
from lorahydra.sweep.study_run import StudyRun
from lorahydra.trial.evaluate_adapter import score_adapter
from lorahydra.trial.prepare import prepare
from lorahydra.trial.record import record_data
from lorahydra.trial.score import TrialScores

__all__ = ["score_winner"]

logger = logging.getLogger("lorahydra.sweep")


def score_winner(run: StudyRun, config: ExperimentConfig, adapter: Path) -> TrialScores | None:
    """Score the winner on the test split and record it in the study's run as `test/…` and `baseline/…`.

    Args:
        run: The study's run.
        config: The winner's experiment.
        adapter: Folder of its adapter.

    Returns:
        The scores; None where there is no test split.

    Raises:
        LorahydraError: Data, model or judge cannot be used.
    """
    prepared = prepare(config)
    run.warnings = prepared.splits.report.warnings
    record_data(run.run, prepared.splits, prepared.splits)
    examples = prepared.test_set
    if examples is None:
        logger.warning("There is no test split: the winner's score is the one it was chosen by, which flatters it")
        return None
    return score_adapter(run.run, config, prepared, examples, adapter, TEST)
