"""The end of a trial: wait for the verdicts, combine the scores, record them and say what came out."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import JudgeBudgetError, JudgeCoverageError, JudgeError, JudgeSetupError, LorahydraError
from lorahydra.evaluation import Evaluation, Judging, evaluate, judged_alike
from lorahydra.evaluation.scoring import Gain, gain
from lorahydra.judges import JudgeSession
from lorahydra.names import EVAL, Tag
from lorahydra.tracking import TrackedRun
from lorahydra.trial.record import record_judging, record_scores
from lorahydra.trial.saved_answers import TrialAnswers
from lorahydra.trial.summary import verdict
from lorahydra.utils.progress import Progress

__all__ = [
    "StudyPlace",
    "TrialJudging",
    "TrialResult",
    "TrialScores",
    "finish_trial",
    "rejudge_hint",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialScores:
    """What a trial's answers are worth."""

    tuned: Evaluation
    baseline: Evaluation | None
    """The untuned model on the same examples; None when it was not asked for."""
    gain: Gain | None
    """Tuned minus untuned `combined`."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial found."""

    run_id: str
    """MLflow run."""
    adapter: Path
    """Folder of the adapter, in PEFT's format."""
    scores: TrialScores
    loss: float
    """Validation loss after training, per labelled token."""
    seconds: float
    """Wall time."""

    @property
    def combined(self) -> float:
        """The objective of a study."""
        return self.scores.tuned.combined.mean


class StudyPlace(Protocol):
    """The trial's place in a study, which hears of it before MLflow's run is closed."""

    @property
    def study_name(self) -> str:
        """The study."""

    @property
    def storage(self) -> str | None:
        """Address of the study's database, without a password; None for one in memory."""

    @property
    def number(self) -> int:
        """Number of the trial."""

    @property
    def params(self) -> Mapping[str, object]:
        """What was searched."""

    @property
    def parent_run_id(self) -> str | None:
        """The study's MLflow run."""

    def started(self, run_id: str, output_dir: Path) -> None:
        """The trial has a run, and a folder with what it leaves."""

    def measured(self, loss: float) -> None:
        """Hear an intermediate validation loss; raises `TrialPruned` to end the trial."""

    def finished(self, result: TrialResult) -> None:
        """Hear the result."""


@dataclass(frozen=True)
class TrialJudging:
    """The judge at work on the answers of the tuned and of the untuned model; both None without a judge."""

    tuned: Judging | None = None
    untuned: Judging | None = None

    def start(self, answers: TrialAnswers) -> None:
        """Begin with answers that are there already."""
        if self.tuned is not None:
            self.tuned.start(answers.tuned.texts)
        if self.untuned is not None and answers.untuned is not None:
            self.untuned.start(answers.untuned.texts)

    def stop(self) -> None:
        """Begin no further call."""
        for judging in (self.tuned, self.untuned):
            if judging is not None:
                judging.stop()


def finish_trial(
    run: TrackedRun,
    config: ExperimentConfig,
    session: JudgeSession | None,
    answers: TrialAnswers,
    judging: TrialJudging,
    progress: Progress,
    prefix: str = EVAL,
) -> TrialScores:
    """Score the answers and record the scores.

    Args:
        run: Where to record.
        config: Weights and seed.
        session: The judge; None without one.
        answers: What is scored.
        judging: The judge at work on them.
        progress: Where to show the waiting.
        prefix: Of the metrics: `EVAL`, or `TEST` for a study's winner.

    Raises:
        LorahydraError: Too few verdicts on the tuned model's answers; what there is was recorded.
    """
    verdicts = judging.tuned.result(progress) if judging.tuned is not None else None
    untuned_verdicts = judging.untuned.result(progress) if judging.untuned is not None else None
    given = [found for found in (verdicts, untuned_verdicts) if found is not None]
    if session is not None and given:
        record_judging(run, session, given, prefix)

    for found in given:
        if found.judgement.error is not None:
            logger.warning("Judging ended early: %s", found.judgement.error)
        elif found.judged < len(found.chosen):
            logger.warning(
                "The judge gave no verdict on %d of %d answers, which are not in its mean; most often: %s",
                len(found.chosen) - found.judged,
                len(found.chosen),
                found.judgement.main_fault,
            )

    tuned = evaluate(answers.tuned, verdicts, config.evaluation, config.seed)
    baseline = None
    if answers.untuned is not None:
        try:
            baseline = evaluate(answers.untuned, untuned_verdicts, config.evaluation, config.seed)
            tuned, baseline = judged_alike([tuned, baseline], config.evaluation, config.seed)
        except LorahydraError as error:
            baseline = None
            logger.warning("The untuned model is left out of the comparison: %s", error)
    scores = TrialScores(tuned, baseline, _gain(tuned, baseline, config))
    _log_scores(tuned)
    record_scores(run, answers, scores.tuned, scores.baseline, scores.gain, prefix)
    if scores.gain is not None:
        run.tags({Tag.GAIN: verdict(scores.gain)})
    return scores


@contextmanager
def rejudge_hint(output_dir: Path, *, in_study: bool = False) -> Iterator[None]:
    """Say in a judge's error how to go on without training again.

    Args:
        output_dir: The trial's folder.
        in_study: A fault that stops the whole study is not repeated for one trial: the study says how it goes on.
    """
    try:
        yield
    except (JudgeError, JudgeSetupError, JudgeBudgetError) as error:
        kept = f"{str(error).rstrip('.')}. The adapter and the answers are kept"
        if not in_study or isinstance(error, JudgeCoverageError):
            kept += f"; go on with: lorahydra judges rejudge {shlex.quote(str(output_dir))}"
        raise type(error)(kept) from error


def _gain(tuned: Evaluation, baseline: Evaluation | None, config: ExperimentConfig) -> Gain | None:
    if baseline is None:
        return None
    return gain(tuned.example_scores, baseline.example_scores, config.evaluation, config.seed)


def _log_scores(tuned: Evaluation) -> None:
    answers, verdicts = tuned.answers, tuned.verdicts
    if verdicts is None or verdicts.score is None:
        logger.info("Evaluation (no LLM judge): BERTScore=%.4f", answers.bertscore_f1)
    else:
        logger.info("LLM judge mean score: %.2f (on %d examples)", verdicts.score, verdicts.judged)
        logger.info(
            "Evaluation: BERTScore=%.4f, LLM judge=%.2f, combined=%.4f",
            answers.bertscore_f1,
            verdicts.score,
            tuned.combined.mean,
        )
    if answers.cut:
        logger.warning(
            "%d of %d answers were cut at evaluation.max_new_tokens: raise it if answers are meant to be longer",
            answers.cut,
            len(answers.texts),
        )
