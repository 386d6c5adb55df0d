"""The result of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.evaluation.scoring import Gain, Interval
from lorahydra.names import BASELINE, FEW_SHOT, FEWEST_EXAMPLES, FORGETTING, TEST, Score, scored
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.trial.score import TrialScores

__all__ = ["FinalScores", "ModelScores", "StudyResult", "facts_of"]


@dataclass(frozen=True)
class ModelScores:
    """The scores of a model on the test split."""

    combined: Interval
    means: Mapping[str, float]
    """Mean scores."""


@dataclass(frozen=True)
class FinalScores:
    """The winner beside the untuned model on the test split, which no trial has seen."""

    tuned: ModelScores
    baseline: ModelScores | None
    """The untuned model; None when it was not asked for."""
    gain: Gain | None
    """Tuned minus untuned `combined`."""

    @classmethod
    def from_facts(cls, facts: Mapping[str, float]) -> FinalScores | None:
        """The scores, from what `facts_of` returned; None if there was no test split."""
        tuned = _model_scores(facts, TEST)
        if tuned is None:
            return None
        gain, ends = None, (Score.GAIN, Score.GAIN_LOW, Score.GAIN_HIGH)
        if tuned.means.keys() >= set(ends):
            mean, low, high = (tuned.means[end] for end in ends)
            # Studies of older versions do not say how many examples there were.
            count = int(tuned.means.get(Score.GAIN_EXAMPLES, FEWEST_EXAMPLES))
            gain = Gain(mean, low, high, count, Score.JUDGE_SCORE in tuned.means)
        return cls(tuned, _model_scores(facts, BASELINE), gain)

    def __repr__(self) -> str:
        parts = [f"combined={self.tuned.combined.mean:.4f}"]
        if self.baseline is not None:
            parts.append(f"baseline={self.baseline.combined.mean:.4f}")
        if self.gain is not None:
            parts.append(f"gain={self.gain.mean:+.4f} ({self.gain.low:+.4f} to {self.gain.high:+.4f})")
        return f"FinalScores({', '.join(parts)})"


def facts_of(scores: TrialScores | None) -> dict[str, float]:
    """The scores on the test split that a study's database keeps, by their names in MLflow."""
    if scores is None:
        return {}
    sides = {TEST: dict(scores.tuned.means) | (scores.gain.means if scores.gain is not None else {})}
    if scores.baseline is not None:
        sides[BASELINE] = dict(scores.baseline.means)
    if scores.few_shot is not None:
        sides[FEW_SHOT] = dict(scores.few_shot.means)
    if scores.few_shot_gain is not None:
        sides[FEW_SHOT] = {**sides.get(FEW_SHOT, {}), "shots": scores.few_shot_gain.shots}
        sides[TEST] |= {f"{FEW_SHOT}_{name}": value for name, value in scores.few_shot_gain.means.items()}
    if scores.forgetting is not None:
        sides[FORGETTING] = dict(scores.forgetting.means)
    return {scored(side, score): float(value) for side, means in sides.items() for score, value in means.items()}


def _model_scores(facts: Mapping[str, float], prefix: str) -> ModelScores | None:
    means = {name.removeprefix(f"{prefix}/"): facts[name] for name in facts if name.startswith(f"{prefix}/")}
    ends = (Score.COMBINED, Score.COMBINED_LOW, Score.COMBINED_HIGH)
    if not means.keys() >= set(ends):
        return None
    return ModelScores(Interval(*(means[score] for score in ends)), means)


@dataclass(frozen=True)
class StudyResult:
    """A finished study; with several objectives the winner is the best of the Pareto front by the first objective."""

    study: str
    """Name of the study."""
    folder: Path
    """Its output folder."""
    best: TrialRecord
    """The winner."""
    trials: list[TrialRecord]
    """All trials, best first."""
    adapter: Path
    """Folder of the winner's adapter, in PEFT's format."""
    run_id: str | None
    """The study's MLflow run; the winner's is `best.run_id`."""
    test: FinalScores | None = None
    """The winner and the untuned model on the test split; None if there is no test split."""
    choice: Choice | None = None
    """Why this trial won, and how sure that is; None if trials cannot be compared example by example."""
    ended_early: str | None = None
    """When and why the study ended before its last trial (`search.stop_when_sure`), as the end of a sentence."""

    @property
    def best_params(self) -> Mapping[str, Any]:
        """The values of the searched parameters that the winner was trained with."""
        return self.best.params

    @property
    def best_score(self) -> float:
        """The winner's first objective on the validation split."""
        return self.best.values[0] if self.best.values else float("nan")

    def __repr__(self) -> str:
        # In a notebook the repr is what a cell shows; all trials would be pages.
        sure = "" if self.choice is None else f"p_best={self.choice.p_best[self.choice.winner]:.2f}, "
        return (
            f"StudyResult(study={self.study!r}, trials={len(self.trials)}, best=trial {self.best.number}, "
            f"best_score={self.best_score:.4f}, best_params={dict(self.best_params)}, test={self.test}, {sure}"
            f"adapter={str(self.adapter)!r})"
        )
