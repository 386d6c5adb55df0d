"""A trial that this process runs: what it reports, and how it ends in the study's store."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lorahydra.errors import JudgeSetupError, LorahydraError, TrialPruned
from lorahydra.names import State
from lorahydra.sweep.compat import BaseHeartbeat, id_of, quietly, storage_of
from lorahydra.sweep.loss_scale import scale_parameters
from lorahydra.sweep.storage import HEARTBEAT_SECONDS, address_of
from lorahydra.sweep.trial_record import ATTRIBUTE, loss_sign, trial_facts
from lorahydra.utils.interrupts import postponed

__all__ = ["RunningTrial", "judged_by", "tell"]

logger = logging.getLogger("lorahydra.sweep")

JUDGED_BY = "lorahydra.judged_by"
"""User attribute of a study: the service's names of the models that gave the verdicts of its first trial."""


class RunningTrial:
    """One trial of a study, from its claim to its end; it ends once, and later calls have no effect."""

    def __init__(self, study: optuna.Study, trial: Trial) -> None:
        self.trial = trial
        self.state = State.RUNNING
        self.parent_run_id: str | None = None
        """MLflow run of the study."""
        self.ended: TrialPruned | None = None
        """Why it was ended early, if it was."""
        self.in_race = False
        """Whether it is compared with the other trials of its pack instead of being pruned by itself."""
        self._study = study
        self._facts: dict[str, Any] = dict(trial_facts(trial))
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._left = threading.Event()

    @property
    def number(self) -> int:
        """The trial's number in Optuna."""
        return self.trial.number

    @property
    def params(self) -> dict[str, Any]:
        """The searched parameters with their values."""
        return dict(self.trial.params)

    @property
    def study_name(self) -> str:
        """Name of the study."""
        return self._study.study_name

    @property
    def storage(self) -> str | None:
        """Address of the study's database, without a password; None for one in memory."""
        return address_of(storage_of(self._study))

    def earlier(self) -> Iterator[Mapping[str, Any]]:
        """The facts of earlier attempts at the same parameters, the last attempt first."""
        trials = self._study.get_trials(deepcopy=False)
        facts: Mapping[str, Any] = self._facts
        while (number := facts.get("retry_of")) is not None:
            facts = trial_facts(trials[number])
            yield facts

    @property
    def failure(self) -> str | None:
        """Why the trial failed, or was ended early."""
        return self._facts.get("failure")

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self._started

    def note(self, **facts: Any) -> None:
        """Keep facts (plain JSON) for the leaderboard, and for the process that takes over if this one dies."""
        self._facts |= facts
        self.trial.set_user_attr(ATTRIBUTE, self._facts)

    def stay_alive(self) -> None:
        """Say in the study's database that the trial is alive, until it ends or the process does.

        Optuna's thread would keep a process alive after an exception has ended it.
        """
        storage = storage_of(self._study)
        if isinstance(storage, BaseHeartbeat):
            threading.Thread(target=_beat, args=(storage, id_of(self.trial), self._left), daemon=True).start()

    def judged_by(self, models: Sequence[str]) -> None:
        """Make sure that the models that judged this trial are those that judged the study's first one.

        Raises:
            JudgeSetupError: The service answers with another model, whose scores cannot be compared.
        """
        judged_by(self._study, models)

    def measured(self, loss: float) -> None:
        """Report an intermediate validation loss.

        Raises:
            TrialPruned: The trial is pruned, and has ended.
            LorahydraError: Another process has closed the trial.
        """
        if len(self._study.directions) > 1 or not math.isfinite(loss):
            return  # Optuna prunes studies of one objective
        try:
            self._report(loss)
        except UpdateFinishedTrialError:
            raise self._closed_elsewhere() from None
        if self.in_race or scale_parameters(self._study):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            pruned = self.trial.should_prune()
        if pruned:
            reason = f"loss {loss:.4f} at measurement {len(self._losses)} is worse than that of other trials"
            with postponed():
                raise self.end_early(reason, loss)

    def end_early(self, reason: str, loss: float) -> TrialPruned:
        """End with this validation loss, because others did better; returns the error that ends the training."""
        with postponed():
            if self._losses[-1:] != [loss]:
                self._report(loss)
            self._end(State.PRUNED, TrialState.PRUNED, facts={"failure": reason})
            self.ended = TrialPruned(reason)
        return self.ended

    def _report(self, loss: float) -> None:
        self._losses.append(loss)
        self.trial.report(loss_sign(self._study) * loss, len(self._losses))

    def compared_at(self) -> set[float]:
        """Where in its schedule the trial was compared with its pack, in earlier attempts as well."""
        return {float(fraction) for facts in (self._facts, *self.earlier()) for fraction in facts.get("compared", [])}

    def compared(self, fraction: float, loss: float, reason: str | None = None) -> LorahydraError | None:
        """Keep the loss by which the trial was compared with its pack, and end it there if there is a reason.

        Returns:
            The error that ends its training, if it ends.
        """
        kept = self._facts.get("compared", {})
        with postponed():
            try:
                self.note(compared={**kept, str(fraction): loss})
                return None if reason is None else self.end_early(reason, loss)
            except UpdateFinishedTrialError:
                return self._closed_elsewhere()

    @property
    def loss_scale(self) -> tuple[Any, ...]:
        """What must be equal for the losses of two trials to compare."""
        params = self.params
        return tuple(params.get(name) for name in scale_parameters(self._study))

    def complete(self, values: Sequence[float], facts: Mapping[str, Any] | None = None) -> None:
        """End with one value per objective, and facts to keep; with a value that is NaN the trial fails."""
        if any(math.isnan(value) for value in values):
            self.failed("nan: the trial's result is not a number", rejected=True)
            return
        self._end(State.COMPLETE, TrialState.COMPLETE, values, facts)

    def pruned(self) -> None:
        """End early, as the function of the trial decided; `measured` does so itself."""
        self._end(State.PRUNED, TrialState.PRUNED)

    def failed(self, failure: str, *, rejected: bool = False) -> None:
        """End without a result; `rejected`: there was one, and it cannot be used."""
        facts: dict[str, Any] = {"failure": " ".join(failure.split())}
        self._end(State.FAILED, TrialState.FAIL, facts=facts | ({"rejected": True} if rejected else {}))

    def interrupted(self) -> None:
        """End without counting: the parameters are run again."""
        self._end(State.INTERRUPTED, TrialState.FAIL, facts={"interrupted": True})

    def leave(self) -> None:
        """Send no more heartbeats for the trial."""
        self._left.set()

    def _end(
        self,
        state: State,
        told: TrialState,
        values: Sequence[float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if self.state is not State.RUNNING:
            return
        self.leave()
        with postponed():
            try:
                self.note(**{"seconds": self.seconds, **(facts or {})})
                tell(self._study, self.number, told, values)
                self.state = state
            except UpdateFinishedTrialError:
                self._closed_elsewhere()

    def _closed_elsewhere(self) -> LorahydraError:
        """This process sent no heartbeat for so long (a laptop slept) that another one closed the trial as dead."""
        logger.warning("Trial %d was closed by another process: its result does not count", self.number)
        self.leave()
        self.state = State.INTERRUPTED
        return LorahydraError(f"trial {self.number} was closed by another process")


def judged_by(study: optuna.Study, models: Sequence[str]) -> None:
    """Make sure that these models, which gave verdicts, are those that judged the study's first trial.

    Raises:
        JudgeSetupError: The service answers with another model, whose scores cannot be compared.
    """
    first: list[str] = study.user_attrs.get(JUDGED_BY, [])
    if not first and models:
        study.set_user_attr(JUDGED_BY, list(models))
    elif others := sorted(set(models) - set(first)):
        raise JudgeSetupError(
            f"the judge's service answers as {', '.join(others)} now, and as {', '.join(first)} when study "
            f"{study.study_name} began: scores of different judges cannot be compared. Begin a new study, with "
            "the name of one version in judge.model if the service has such names, or else with judge.cache=false"
        )


def _beat(storage: BaseHeartbeat, trial_id: int, stopped: threading.Event) -> None:
    while not stopped.is_set():
        # If the database cannot be reached for long, the trial itself raises the error.
        with contextlib.suppress(SQLAlchemyError, StorageInternalError):
            storage.record_heartbeat(trial_id)
        stopped.wait(HEARTBEAT_SECONDS)


def tell(study: optuna.Study, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
    """`study.tell`, also for the grid sampler, which asks to stop `study.optimize` at the end of its grid."""
    with quietly():
        try:
            study.tell(number, values=None if values is None else list(values), state=state)
        except RuntimeError as error:
            if "`Study.stop`" not in str(error):
                raise
