"""The trials of a study, read from Optuna's database into plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from lorahydra.names import State

__all__ = [
    "ATTRIBUTE",
    "RaceScore",
    "TrialRecord",
    "compared_losses",
    "counted",
    "loss_sign",
    "losses_of",
    "ordinals",
    "states_of",
    "trial_facts",
    "trial_records",
]

ATTRIBUTE = "lorahydra"
"""User attribute of a trial that holds all facts about it, as one mapping."""


@dataclass(frozen=True)
class RaceScore:
    """The scores of a trial that was left at the end of a race; MLflow has them as `final/…`."""

    combined: float
    combined_low: float
    combined_high: float
    """Ends of the 95 % interval."""
    judge_score: float | None
    examples: int
    """Those with a verdict on each of the trials that were left."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study."""

    number: int
    """Optuna's number, also the name of the trial's folder."""
    state: State
    """`interrupted` trials do not count; their parameters were, or will be, run or judged again."""
    params: Mapping[str, Any]
    """The searched parameters with their values."""
    values: tuple[float, ...] | None = None
    """One per objective; None unless complete."""
    combined: float | None = None
    combined_low: float | None = None
    combined_high: float | None = None
    """Ends of the 95 % interval of `combined`."""
    bertscore_f1: float | None = None
    judge_score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means of the chosen metrics, by name."""
    loss: float | None = None
    """Validation loss: the last one that was reported."""
    seconds: float | None = None
    """Wall time."""
    retry_of: int | None = None
    """The trial whose parameters it runs or judges again."""
    deaths: Sequence[int | None] = ()
    """Signals of the processes that died with these parameters; None if the signal was not seen."""
    failure: str | None = None
    """Class of the error and one line, if it failed; why it was ended early, if it was pruned."""
    rejected: bool = False
    """Whether it failed because its result cannot be used: not a number, or a wrong number of values."""
    run_id: str | None = None
    """MLflow run; None if another trial has taken it over."""
    folder: Path | None = None
    """Output folder."""
    adapter_bytes: int | None = None
    """Size of the adapter's weights; None if an earlier version recorded the trial."""
    baseline: Mapping[str, float | None] | None = None
    """`combined` with its ends, `bertscore_f1` and `judge_score` of the untuned model on the same examples; None if it
    was not scored, or an earlier version recorded the trial."""
    forgetting: float | None = None
    """How far its loss on general texts is above the untuned model's, in nats per token; None if not measured."""
    excluded: str | None = None
    """Why it cannot win although it is complete."""
    p_best: float | None = None
    """Probability of being the best trial, 0 to 1, after the end of its study (`lorahydra.sweep.choice`)."""
    in_set: bool | None = None
    """Whether it cannot be told from the best trial; None before the end of its study."""
    final: RaceScore | None = None
    """Its scores after the race, which decide in place of the others; None if it was not left then."""
    is_winner: bool = False
    """Whether its study has named it the winner."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """Intermediate validation losses by number of the measurement."""

    def __repr__(self) -> str:
        values = "" if self.values is None else f", values={tuple(round(value, 4) for value in self.values)}"
        failure = "" if self.failure is None else f", failure={self.failure!r}"
        return f"TrialRecord(number={self.number}, state={self.state}, params={dict(self.params)}{values}{failure})"

    @property
    def counts(self) -> bool:
        """Whether the trial is finished in the sense of `n_trials`: complete, pruned or failed."""
        return self.state in COUNTED


COUNTED = (State.COMPLETE, State.PRUNED, State.FAILED)
STATES = {
    TrialState.COMPLETE: State.COMPLETE,
    TrialState.PRUNED: State.PRUNED,
    TrialState.FAIL: State.FAILED,
    TrialState.RUNNING: State.RUNNING,
}


def trial_facts(trial: FrozenTrial | Trial) -> Mapping[str, Any]:
    """The facts kept beside a trial: fields of its record, its worker, and which trial it repeats."""
    facts: Mapping[str, Any] = trial.user_attrs.get(ATTRIBUTE, {})
    return facts


def loss_sign(study: Study) -> int:
    """The sign with which a study records losses: a pruner reads them in the study's direction."""
    return -1 if study.directions == [StudyDirection.MAXIMIZE] else 1


def losses_of(trial: FrozenTrial, sign: int) -> dict[int, float]:
    """Intermediate validation losses by number of the measurement; `sign` is that of the study."""
    return {step: sign * value for step, value in trial.intermediate_values.items()}


def compared_losses(trial: FrozenTrial) -> dict[float, float]:
    """The validation losses by which a trial was compared with its pack, by the fraction of its schedule."""
    kept = trial_facts(trial).get("compared", {})
    # Earlier versions kept the fractions alone.
    return {float(fraction): loss for fraction, loss in kept.items()} if isinstance(kept, Mapping) else {}


def states_of(trials: Sequence[FrozenTrial]) -> dict[int, State]:
    """The states of all trials that were begun, by number.

    A failed trial that another one repeats does not count: its answers may have been judged again.
    """
    repeated = {trial_facts(trial).get("retry_of") for trial in trials}
    states = {}
    for trial in trials:
        if trial.state is TrialState.WAITING:
            continue
        state = State.INTERRUPTED if trial_facts(trial).get("interrupted") else STATES[trial.state]
        states[trial.number] = State.INTERRUPTED if state is State.FAILED and trial.number in repeated else state
    return states


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count or are running, of all trials of a study: those that decide what is drawn next."""
    states = states_of(trials)
    return [trial for trial in trials if states.get(trial.number, State.INTERRUPTED) is not State.INTERRUPTED]


def trial_records(study: Study, trials: Sequence[FrozenTrial] | None = None) -> list[TrialRecord]:
    """All trials of a study that were begun, by number; a run belongs to the last trial that recorded to it.

    Args:
        study: The study.
        trials: Its trials, if they have been read, or some of them.
    """
    trials, sign = study.get_trials(deepcopy=False) if trials is None else trials, loss_sign(study)
    states = states_of(trials)
    owner = {trial_facts(trial).get("run_id"): trial.number for trial in trials}
    records = []
    for trial in trials:
        if trial.number not in states:
            continue
        record = _record(trial, states[trial.number], sign)
        records.append(record if owner[record.run_id] == record.number else replace(record, run_id=None))
    return records


def ordinals(records: Sequence[TrialRecord]) -> dict[int, int]:
    """By number, which trial of its study it is for people, who count from 1.

    A trial that repeats another one has its place, so that a study of `n_trials` has places 1 to `n_trials`.
    """
    places: dict[int, int] = {}
    taken = 0
    for record in sorted(records, key=lambda record: record.number):
        earlier = places.get(record.number if record.retry_of is None else record.retry_of)
        places[record.number] = earlier or taken + 1
        # One whose process died before its parameters were drawn was not begun: the next trial takes its place.
        if record.state is not State.INTERRUPTED or record.params:
            taken = max(taken, places[record.number])
    return places


def _record(trial: FrozenTrial, state: State, sign: int) -> TrialRecord:
    kept = dict(trial_facts(trial))
    folder = kept.pop("folder", None)
    fields = {name: value for name, value in kept.items() if name in TrialRecord.__dataclass_fields__}
    if "seconds" not in fields and trial.duration is not None:
        fields["seconds"] = trial.duration.total_seconds()
    losses = losses_of(trial, sign)
    return TrialRecord(
        number=trial.number,
        state=state,
        params=dict(trial.params),
        values=tuple(trial.values) if trial.state is TrialState.COMPLETE else None,
        losses=losses,
        loss=losses[max(losses)] if losses else None,
        folder=None if folder is None else Path(folder),
        **fields,
    )
