"""The winner and the untuned model on the test split, which no trial has seen."""

from __future__ import annotations

import logging
from pathlib import Path

from lorahydra.answers import TrialAnswers
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Judging, answer, answer_untuned
from lorahydra.finishing import TrialJudging, TrialScores, finish_trial
from lorahydra.modeling.adapters import load_adapter
from lorahydra.names import TEST
from lorahydra.preparation import prepare, test_examples
from lorahydra.progress import Progress
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
    examples = test_examples(prepared, config)
    if examples is None:
        logger.warning("There is no test split: the winner's score is the one it was chosen by, which flatters it")
        return None
    progress, base, scorer, settings = Progress(), prepared.base, prepared.scorer, config.evaluation
    judging = TrialJudging()
    if prepared.session is not None:
        untuned_judging = Judging(prepared.session, examples, config.seed) if settings.baseline else None
        judging = TrialJudging(Judging(prepared.session, examples, config.seed), untuned_judging)
    with load_adapter(base, adapter) as model:
        tuned = answer(
            model, base, examples, scorer, settings, judging=judging.tuned, progress=progress, description="Testing"
        )
    untuned = None
    if settings.baseline:
        untuned = answer_untuned(base, examples, scorer, settings, judging=judging.untuned, progress=progress)
    answers = TrialAnswers(examples, tuned, untuned, steps=0)
    return finish_trial(run.run, config, prepared.session, answers, judging, progress, prefix=TEST)
