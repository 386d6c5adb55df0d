"""Optuna's storage of studies in a database, with fewer and plainer statements, and transactions for a whole claim.

Optuna makes an object of SQLAlchemy for each row, and a transaction for each value that is written. While a worker
claims a trial, all others may wait for it. Like `compat`, this module relies on private parts of Optuna, its tables and
how its cache asks for trials; `tests/sweep/test_study_database.py` tests them.
"""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Float, String, bindparam, cast, func, literal, null, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["StudyDatabase"]

TRIALS_PER_STATEMENT = 1000
"""SQLite takes 32,766 values in one statement, and each of these trials stands in it five times."""
NUMBERS = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
"""What Optuna's names of numbers mean that not every database has."""

_Trial = models.TrialModel
_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_HEADS = select(
    _Trial.trial_id, _Trial.number, _Trial.state, _Trial._datetime_start_utc, _Trial._datetime_complete_utc
).order_by(_Trial.trial_id)


class StudyDatabase(RDBStorage):
    """The storage. What it reads and writes is what Optuna's own class does, which may use the database as well."""

    @contextmanager
    def joined(self, connection: Connection, settled: Collection[int] = ()) -> Iterator[None]:
        """Let all that this thread reads and writes belong to the transaction of a connection.

        Args:
            connection: The connection.
            settled: Ids of running trials that need not be read again as long as they run.
        """
        self.scoped_session.remove()
        # After an error Optuna rolls back what it did itself. Without savepoints that would be the whole transaction,
        # and its lock in PostgreSQL.
        self.scoped_session(bind=connection, info={"settled": settled}, join_transaction_mode="create_savepoint")
        try:
            yield
        finally:
            self.scoped_session.remove()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        bind = self.scoped_session().get_bind()
        if isinstance(bind, Connection):
            yield bind
        else:
            with bind.begin() as connection:
                yield connection

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """The trials of a study: the later ones, and the included ones that are not later."""
        first = min((trial_id_greater_than + 1, *included_trial_ids))
        heads = _HEADS.where(_Trial.study_id == study_id, _Trial.trial_id >= first)
        settled = self.scoped_session().info.get("settled", ())
        with self._connected() as connection:
            wanted = [
                head
                for head in connection.execute(heads)
                if (head.trial_id > trial_id_greater_than or head.trial_id in included_trial_ids)
                and (states is None or head.state in states)
                and not (head.state is TrialState.RUNNING and head.trial_id in settled)
            ]
            starts = range(0, len(wanted), TRIALS_PER_STATEMENT)
            packs = (wanted[start : start + TRIALS_PER_STATEMENT] for start in starts)
            return [trial for pack in packs for trial in _trials(connection, pack)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One trial."""
        with self._connected() as connection:
            heads = connection.execute(_HEADS.where(_Trial.trial_id == trial_id)).all()
            if not heads:
                raise KeyError(models.NOT_FOUND_MSG)
            return _trials(connection, heads)[0]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """The attributes of a study."""
        return self._study_attrs(models.StudyUserAttributeModel, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """What samplers keep in a study."""
        return self._study_attrs(models.StudySystemAttributeModel, study_id)

    def _study_attrs(self, model: Any, study_id: int) -> dict[str, Any]:
        study = models.StudyModel.study_id
        kept = select(model.key, model.value_json).outerjoin_from(models.StudyModel, model, model.study_id == study)
        with self._connected() as connection:
            rows = connection.execute(kept.where(study == study_id)).all()
        if not rows:
            raise KeyError(models.NOT_FOUND_MSG)
        return {key: json.loads(text) for key, text in rows if key is not None}

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Write an attribute of a study."""
        of_study = select(models.StudyModel.study_id).where(models.StudyModel.study_id == study_id)
        if not self._keep(models.StudyUserAttributeModel, of_study, key, value):
            super().set_study_user_attr(study_id, key, value)  # says why not

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of a trial that has not ended."""
        if not self._keep(models.TrialUserAttributeModel, _open_trial(trial_id), key, value):
            super().set_trial_user_attr(trial_id, key, value)

    def _keep(self, model: Any, owner: Any, key: str, value: Any) -> bool:
        """Write an attribute of a study or a trial, unless there is no such owner."""
        [column] = owner.selected_columns
        statement = self._insert(model).from_select(
            [column.name, "key", "value_json"], owner.add_columns(literal(key), literal(json.dumps(value)))
        )
        new = {"value_json": statement.excluded.value_json}
        with self._connected() as connection:
            done = connection.execute(statement.on_conflict_do_update(index_elements=[column.name, "key"], set_=new))
            return bool(done.rowcount)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        given = (trial_id, param_name, param_value_internal, distribution, previous_distribution)
        if previous_distribution is None:
            super()._set_trial_param(*given)
            return
        check_distribution_compatibility(previous_distribution, distribution)
        values = (literal(param_name), literal(param_value_internal), literal(distribution_to_json(distribution)))
        statement = self._insert(models.TrialParamModel).from_select(
            ["trial_id", "param_name", "param_value", "distribution_json"], _open_trial(trial_id).add_columns(*values)
        )
        with self._connected() as connection:
            written = connection.execute(statement.on_conflict_do_nothing()).rowcount
        if not written:
            super()._set_trial_param(*given)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As in Optuna; but where a trial is to be run and does not wait, False also means that it has ended."""
        if state is not TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        begun = sqlalchemy.update(_Trial.__table__).where(
            _Trial.trial_id == trial_id, _Trial.state == TrialState.WAITING
        )
        now = datetime.now(UTC).replace(tzinfo=None)
        with self._connected() as connection:
            return bool(connection.execute(begun.values(state=state, datetime_start=now)).rowcount)

    def record_heartbeat(self, trial_id: int) -> None:
        """Write that a trial is alive."""
        statement = self._insert(models.TrialHeartbeatModel).values(trial_id=trial_id)
        again = statement.on_conflict_do_update(index_elements=["trial_id"], set_={"heartbeat": func.now()})
        with self._connected() as connection:
            connection.execute(again)

    def _insert(self, model: Any) -> Any:
        dialect: Any = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(model)


def _open_trial(trial_id: int) -> Any:
    return select(_Trial.trial_id).where(_Trial.trial_id == trial_id, _Trial.state.in_(_OPEN))


@functools.cache
def _parts() -> Any:
    """What belongs to trials, as rows of one form: its kind and order, the trial, a name, a number and a text."""
    no_number = cast(null(), Float(53))
    user, system, params = models.TrialUserAttributeModel, models.TrialSystemAttributeModel, models.TrialParamModel
    values, measured = models.TrialValueModel, models.TrialIntermediateValueModel
    objective, step = cast(values.objective, String), cast(measured.step, String)
    kinds = cast(values.value_type, String), cast(measured.intermediate_value_type, String)
    rows: dict[str, Any] = {
        "param": (params, params.param_id, params.param_name, params.param_value, params.distribution_json),
        "value": (values, values.trial_value_id, objective, values.value, kinds[0]),
        "measured": (measured, measured.trial_intermediate_value_id, step, measured.intermediate_value, kinds[1]),
        "user": (user, user.trial_user_attribute_id, user.key, no_number, user.value_json),
        "system": (system, system.trial_system_attribute_id, system.key, no_number, system.value_json),
    }
    ids: Any = bindparam("ids", expanding=True)
    return union_all(
        *(
            select(literal(kind), order, model.trial_id, name, number, text).where(model.trial_id.in_(ids))
            for kind, (model, order, name, number, text) in rows.items()
        )
    )


def _trials(connection: Connection, heads: Sequence[Any]) -> list[FrozenTrial]:
    """The trials of some rows of `_HEADS`."""
    parts: dict[int, dict[str, dict[str, tuple[float, str]]]] = {head.trial_id: defaultdict(dict) for head in heads}
    rows = connection.execute(_parts(), {"ids": list(parts)}).all()
    for kind, _order, trial_id, name, number, text in sorted(rows, key=itemgetter(0, 1)):
        parts[trial_id][kind][name] = (number, text)
    return [_trial(head, parts[head.trial_id]) for head in heads]


def _trial(head: Any, parts: Mapping[str, Mapping[str, tuple[float, str]]]) -> FrozenTrial:
    trial_id, number, state, start, complete = head
    values = {int(name): _number(*pair) for name, pair in parts["value"].items()}
    distributions = {name: _distribution(text) for name, (_, text) in parts["param"].items()}
    params = parts["param"].items()
    return FrozenTrial(
        trial_id=trial_id,
        number=number,
        state=state,
        value=None,
        values=[values[place] for place in sorted(values)] or None,
        datetime_start=_local(start),
        datetime_complete=_local(complete),
        params={name: distributions[name].to_external_repr(internal) for name, (internal, _) in params},
        distributions=distributions,
        user_attrs={name: json.loads(text) for name, (_, text) in parts["user"].items()},
        system_attrs={name: json.loads(text) for name, (_, text) in parts["system"].items()},
        intermediate_values={int(name): _number(*pair) for name, pair in parts["measured"].items()},
    )


@functools.lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _number(number: float | None, kind: str) -> float:
    return NUMBERS[kind] if number is None else number


def _local(moment: datetime | None) -> datetime | None:
    """Optuna keeps UTC, and shows the time of this machine."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
