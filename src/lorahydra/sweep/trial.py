"""One trial of a study: the experiment, told where it belongs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lorahydra.config.compose import to_config
from lorahydra.config.schema import ExperimentConfig
from lorahydra.config.search import objectives
from lorahydra.errors import StudyError
from lorahydra.experiment import TrialResult, run_trial
from lorahydra.names import State
from lorahydra.sweep.current import current_trial
from lorahydra.sweep.running import RunningTrial

__all__ = ["run_study_trial", "study_task"]


def study_task(tree: DictConfig) -> float | list[float]:
    """The function that Hydra calls for each trial of a study."""
    trial = current_trial()
    if trial is None:
        raise StudyError("this is not a trial of a study: use hydra/sweeper=lorahydra")
    values = run_study_trial(to_config(tree), list(HydraConfig.get().overrides.task), trial)
    return values[0] if len(values) == 1 else values


def run_study_trial(config: ExperimentConfig, overrides: Sequence[str], trial: RunningTrial) -> list[float]:
    """Run the trial; the study hears of it on the way.

    Args:
        config: The trial's experiment.
        overrides: What the study set.
        trial: The trial.

    Returns:
        One value per objective.
    """
    result = run_trial(config, overrides=overrides, place=_Place(trial, config))
    return _values(result, config)


class _Place:
    """The trial's place in its study (`lorahydra.experiment.StudyPlace`)."""

    def __init__(self, trial: RunningTrial, config: ExperimentConfig) -> None:
        self._trial = trial
        self._config = config

    @property
    def study_name(self) -> str:
        return self._trial.study_name

    @property
    def number(self) -> int:
        return self._trial.number

    @property
    def params(self) -> Mapping[str, object]:
        return self._trial.params

    @property
    def parent_run_id(self) -> str | None:
        return self._trial.parent_run_id

    def started(self, run_id: str, output_dir: Path) -> None:
        self._trial.note(run_id=run_id, folder=str(output_dir.absolute()))

    def measured(self, loss: float) -> None:
        self._trial.measured(loss)

    def finished(self, result: TrialResult) -> None:
        tuned = result.scores.tuned
        verdicts = tuned.verdicts
        facts = {
            "combined": tuned.combined.mean,
            "combined_low": tuned.combined.low,
            "combined_high": tuned.combined.high,
            "bertscore_f1": tuned.answers.bertscore_f1,
            "judge_score": None if verdicts is None else verdicts.score,
            "seconds": result.seconds,
        }
        self._trial.complete(_values(result, self._config), facts)
        if self._trial.state is not State.COMPLETE:
            raise ValueError(self._trial.failure)


def _values(result: TrialResult, config: ExperimentConfig) -> list[float]:
    tuned = result.scores.tuned
    known: dict[str, Callable[[], float | None]] = {
        "combined": lambda: tuned.combined.mean,
        "bertscore_f1": lambda: tuned.answers.bertscore_f1,
        "judge_score": lambda: tuned.verdicts.score if tuned.verdicts is not None else None,
        "loss": lambda: result.loss,
        "time": lambda: result.seconds,
        "adapter_size": lambda: sum(file.stat().st_size for file in result.adapter.glob("*.safetensors")),
    }
    found = [known[name]() for name in objectives(config.objective)]
    return [math.nan if value is None else float(value) for value in found]
