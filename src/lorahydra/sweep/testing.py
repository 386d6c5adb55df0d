"""The winner and the untuned model on the test split, which no trial has seen."""

from __future__ import annotations

import logging
from pathlib import Path

from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluating import score_adapter
from lorahydra.finishing import TrialScores
from lorahydra.names import TEST
from lorahydra.preparation import prepare, test_examples
from lorahydra.recording import record_datasets
from lorahydra.sweep.parent import StudyRun

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
    splits = prepared.splits
    record_datasets(run.run, *(split for split in (splits.train, splits.validation, splits.test) if split is not None))
    examples = test_examples(prepared, config)
    if examples is None:
        logger.warning("There is no test split: the winner's score is the one it was chosen by, which flatters it")
        return None
    return score_adapter(run.run, config, prepared, examples, adapter, TEST)
