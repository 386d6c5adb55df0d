"""A trial's run in MLflow, and its place in a study if it belongs to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import TrialPruned
from lorahydra.names import EVAL, Kind, Metric, Score, State, Tag, scored
from lorahydra.tracking import TrackedRun, start_run
from lorahydra.training import OnMetrics
from lorahydra.trial.score import TrialScores
from lorahydra.utils.interrupts import postponed, raise_if_interrupted

__all__ = ["StudyPlace", "TrialResult", "end_trial", "metrics_of", "number_tag", "run_name", "start_trial"]

LONGEST_MODEL = 100
"""Characters of a model's name in a run's name; MLflow's databases keep 250 characters of a run's name."""


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

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
    """The trial's place in a study, which is told the result before MLflow's run is closed."""

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
    def kind(self) -> Kind:
        """`TRIAL`, or `REPEAT` if it trains the setting of the trial `number` with another seed."""

    @property
    def params(self) -> Mapping[str, object]:
        """What was searched."""

    @property
    def parent_run_id(self) -> str | None:
        """The study's MLflow run."""

    def started(self, run_id: str, output_dir: Path) -> None:
        """Receive the trial's run and its output folder."""

    @property
    def ended(self) -> TrialPruned | None:
        """Why the study has ended the trial early, if it has."""

    def measured(self, loss: float) -> None:
        """Receive an intermediate validation loss; raises `TrialPruned` to end the trial."""

    def forgot(self, loss: float) -> None:
        """Receive how much the loss on general texts has risen, in nats per token, before the result."""

    def finished(self, result: TrialResult) -> None:
        """Receive the result."""


def run_name(config: ExperimentConfig, place: StudyPlace | None = None) -> str:
    """Name of a trial's run, which distinguishes it from other trials."""
    model = config.model.name_or_path.rstrip("/").rpartition("/")[2][:LONGEST_MODEL]
    name = config.tracking.run_name or f"r={config.lora.r} lr={config.training.learning_rate:.3g} {model}"
    if place is not None and place.kind is Kind.REPEAT:
        name = f"seed={config.training.seed} {name}"
    return name if place is None else f"{place.number}: {name}"


def number_tag(place: StudyPlace) -> dict[str, str]:
    """The tag with the number of the trial that a run is, or whose setting it trains with another seed."""
    return {(Tag.REPEATS if place.kind is Kind.REPEAT else Tag.TRIAL_NUMBER).value: str(place.number)}


def start_trial(config: ExperimentConfig, place: StudyPlace | None) -> TrackedRun:
    """Open the trial's run, nested under the study's run if it belongs to one."""
    tags, parent = {}, None
    if place is not None:
        tags = {Tag.STUDY.value: place.study_name, **number_tag(place)}
        parent = place.parent_run_id
    return start_run(
        config.tracking,
        output_dir=Path(config.output_dir),
        kind=Kind.SINGLE if place is None else place.kind,
        run_name=run_name(config, place),
        tags=tags,
        parent_run_id=parent,
    )


def metrics_of(run: TrackedRun, place: StudyPlace | None) -> OnMetrics:
    """Sends training metrics to MLflow, and validation losses to the study as well.

    A training that begins again because memory ran out reports its first steps twice; only the first report counts.
    """
    reported: dict[str, int] = {}

    def on_metrics(values: Mapping[str, float], step: int) -> None:
        if place is not None and place.ended is not None:
            raise place.ended
        fresh = {name: value for name, value in values.items() if step > reported.get(name, -1)}
        reported.update(dict.fromkeys(fresh, step))
        run.metrics(fresh, step)
        loss = fresh.get(scored(EVAL, Score.LOSS))
        if place is not None and loss is not None:
            place.measured(loss)

    return on_metrics


def end_trial(run: TrackedRun, result: TrialResult, place: StudyPlace | None) -> None:
    """Close the run of a complete trial, after its study has received the result."""
    run.metrics({Metric.TIME_TOTAL: result.seconds})
    raise_if_interrupted()
    # Together, so that the study and MLflow say the same.
    with postponed():
        if place is not None:
            place.finished(result)
        run.finish(State.COMPLETE)
