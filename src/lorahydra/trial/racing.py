"""Lets the trials of a study race for the judge's verdicts on more and more validation examples.

Answers and verdicts are kept: a race that is repeated asks for no verdict twice.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import JudgeBudgetError, JudgeCoverageError
from lorahydra.evaluation import Evaluation, Judging, evaluate, judged_alike
from lorahydra.evaluation.intervals import Floats
from lorahydra.evaluation.judging import choose
from lorahydra.evaluation.racing import Race, race
from lorahydra.evaluation.scoring import weighted
from lorahydra.judges import Judgement, JudgeSession
from lorahydra.judges.cache import VerdictCache
from lorahydra.trial.finalists import check_alike, judged_as, record_final
from lorahydra.trial.rejudge import judge_session
from lorahydra.trial.saved import SavedTrial, load_trial
from lorahydra.utils.progress import Progress

__all__ = ["Raced", "race_trials", "verdicts_at_most"]

logger = logging.getLogger("lorahydra.sweep")

Verdicts = Sequence[float | None]
"""A judge's score of each example, 0…100; None without a verdict."""


@dataclass(frozen=True)
class Raced:
    """The outcome of a race of trials, which are named by their output folders."""

    best: Path
    verdicts: Mapping[Path, Verdicts]
    """The scores of all trials that can be compared with the best one."""
    final: Mapping[Path, Evaluation]
    """The trials that are left, on the examples that have a verdict on each of them; empty if no round was held."""
    race: Race


def verdicts_at_most(settings: ExperimentConfig, examples: int) -> int:
    """The most verdicts that a race asks for: as many as judging `judge.finalists` trials on all examples takes."""
    judge = settings.judge
    judged = examples if judge.n_examples == "all" else min(judge.n_examples, examples)
    whole = judge.finalists * (examples * judge.repeats - judged)
    return whole if judge.max_calls is None else min(whole, judge.max_calls)


def race_trials(first: Mapping[Path, Verdicts], settings: ExperimentConfig, tracking_uri: str | None) -> Raced:
    """Judge the answers of trials on more and more validation examples, until it is clear which trial is the best.

    The scores of those that are left in the end are recorded in their runs as `final/…`.

    Args:
        first: The verdicts that each trial has, by its output folder.
        settings: The experiment whose judge is used.
        tracking_uri: Where the MLflow store is, if it has moved.

    Raises:
        ConfigError: The trials were not judged alike.
        JudgeError: The judge is unavailable, or gives too few verdicts.
    """
    trials = [load_trial(folder, tracking_uri=tracking_uri) for folder in first]
    check_alike(trials, settings)
    trials = [judged_as(trial, settings) for trial in trials]
    session = judge_session(settings)
    _, judge_weight = settings.evaluation.weights_with(judge=True)
    examples = len(trials[0].predictions.examples.texts)
    rounds = _Rounds(session, trials, judge_weight)
    with session.purse.half_of_the_rest(), _remembering(session):
        outcome = race(
            np.array([weighted(trial.predictions.tuned.scores, settings.evaluation, judge=True) for trial in trials]),
            judge_weight * np.array(list(first.values()), dtype=np.float64) / 100,
            rounds.ask,
            judged=len(choose(examples, settings.judge.n_examples, settings.seed)),
            verdicts=verdicts_at_most(settings, examples),
            indifference=settings.search.indifference,
            repeats=settings.judge.repeats,
            seed=settings.seed,
        )
    _say(outcome, settings, examples)
    final = rounds.record(outcome.last, settings, tracking_uri)
    scores = outcome.judge * 100 / judge_weight if judge_weight else outcome.judge
    verdicts = {
        trial.folder: [None if np.isnan(score) else float(score) for score in row]
        for trial, row in zip(trials, scores, strict=True)
    }
    return Raced(trials[outcome.last[0]].folder, verdicts, final, outcome)


@dataclass
class _Rounds:
    """Asks the judge for the verdicts of each round."""

    session: JudgeSession
    trials: Sequence[SavedTrial]
    weight: float
    """Of the judge, in `combined`."""
    judged: dict[int, list[Judgement]] = field(default_factory=dict)
    """All judgements on each trial, by its position, the last one first."""
    counting: dict[int, Judgement] = field(default_factory=dict)
    """The last judgement of each that is complete."""

    def ask(self, racing: Sequence[int], examples: int) -> Floats | None:
        """The weighted verdicts on these trials; None if money or calls have run out."""
        logger.info("Race, round of %d examples: %d trials", examples, len(racing))
        given = self._judge(racing, examples)
        for position, judgement in zip(racing, given, strict=True):
            self.judged.setdefault(position, []).insert(0, judgement)
        errors = [judgement.error for judgement in given if judgement.error is not None]
        if any(isinstance(error, JudgeBudgetError) for error in errors):
            logger.warning("The race ends early: half of judge.max_cost is left for the test split")
            return None
        if errors:
            raise errors[0]
        least = self.session.config.min_coverage
        rows: Floats = np.array([judgement.scores for judgement in given], dtype=np.float64)
        enough = np.array([judgement.coverage >= least for judgement in given])
        if not enough.any():
            raise JudgeCoverageError(
                f"judge {self.session.config.name} gave too few verdicts on each of the trials that are compared; most "
                f"often: {given[0].main_fault}"
            )
        for position in np.flatnonzero(~enough).tolist():
            logger.warning("%s leaves the race: too few verdicts", self.trials[racing[position]].folder)
        rows[~enough] = np.nan
        self.counting.update(zip(racing, given, strict=True))
        return rows * self.weight / 100

    def _judge(self, racing: Sequence[int], examples: int) -> list[Judgement]:
        config = self.session.config
        with ExitStack() as block:
            judgings = []
            for position in racing:
                trial = self.trials[position]
                judging = Judging(
                    self.session,
                    trial.predictions.examples,
                    trial.config.seed,
                    n_examples=examples,
                    repeats=config.repeats,
                )
                block.enter_context(judging).start(trial.predictions.tuned.texts)
                judgings.append(judging)
            progress = Progress()
            return [judgement for judging in judgings for judgement in judging.verdicts(progress) if judgement]

    def record(
        self, last: Sequence[int], settings: ExperimentConfig, tracking_uri: str | None
    ) -> dict[Path, Evaluation]:
        """Add the scores of the trials that are left, and what judging has cost, to their runs; returns the scores."""
        complete = [n for n in last if n in self.counting]
        tuned = [
            evaluate(self.trials[n].predictions.tuned, self.counting[n], settings.evaluation, settings.seed)
            for n in complete
        ]
        alike = dict(zip(complete, judged_alike(tuned, settings.evaluation, settings.seed), strict=True))
        for n, judgements in self.judged.items():
            record_final(self.trials[n], alike.get(n), judgements, tracking_uri)
        return {self.trials[n].folder: scores for n, scores in alike.items()}


@contextlib.contextmanager
def _remembering(session: JudgeSession) -> Iterator[None]:
    """Keep the verdicts of each round for the next one, even with `judge.cache=false`."""
    if session.cache is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        session.cache = VerdictCache(Path(folder) / "verdicts.sqlite")
        try:
            yield
        finally:
            session.cache = None


def _say(outcome: Race, settings: ExperimentConfig, examples: int) -> None:
    first = len(choose(examples, settings.judge.n_examples, settings.seed))
    whole = settings.judge.finalists * (examples * settings.judge.repeats - first)
    logger.info(
        "The race ends after %d rounds, on %d examples: %s. It took %d verdicts; judging the best %d trials on all %d "
        "examples takes %d",
        *(outcome.rounds, outcome.examples, outcome.reason, outcome.verdicts),
        *(settings.judge.finalists, examples, whole),
    )
