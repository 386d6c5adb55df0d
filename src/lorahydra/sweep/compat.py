"""Private parts of Optuna and of Hydra's Optuna sweeper, and Optuna's experimental features.

Each private part has the reason why the public API is not enough. Only `study_database` imports or reads
others. `tests/sweep/test_compat.py` tests what is relied on; `make upgrade-check` runs it with the newest versions
that pyproject.toml allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, Trial, TrialState

__all__ = [
    "BaseHeartbeat",
    "LazyRandomState",
    "begin_trial",
    "create_params_from_overrides",
    "database_of",
    "forget_trials",
    "id_of",
    "known_trials",
    "last_heartbeats",
    "quietly",
    "set_system_attr",
    "storage_of",
    "suggest",
    "system_attrs",
    "user_attrs",
]

# `create_params_from_overrides`: reads overrides as Hydra's sweeper does, which has no public function for it.
# `BaseHeartbeat`: storages that keep heartbeats. Optuna sends them only from its own loop, which is not used here.
# `LazyRandomState`: the random generators in a sampler. Optuna has no way to save or restore their state.


@contextmanager
def quietly() -> Iterator[None]:
    """Hide the warnings about experimental features: a user did not ask for a feature of Optuna by that name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def storage_of(study: optuna.Study) -> BaseStorage:
    """The storage that a study uses. A study's public methods all go through its own loop."""
    return study._storage


def database_of(storage: BaseStorage) -> RDBStorage | None:
    """The database behind a storage, which `create_study` wraps in a cache that hides it; None for memory."""
    backend = getattr(storage, "_backend", storage)
    return backend if isinstance(backend, RDBStorage) else None


def forget_trials(storage: BaseStorage) -> None:
    """Empty the cache of a storage that `create_study` has made, so that it reads all trials again."""
    if isinstance(storage, _CachedStorage):
        with storage._lock:
            storage._studies.clear()
            storage._trial_id_to_study_id_and_number.clear()
            storage._study_id_and_number_to_trial_id.clear()


def known_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study as they are in the cache of its storage, which may be out of date."""
    storage = study._storage
    known = storage._studies.get(study._study_id) if isinstance(storage, _CachedStorage) else None
    return [] if known is None else list(known.trials.values())


def id_of(trial: Trial | FrozenTrial) -> int:
    """A storage's id of a trial; the public API has only the trial's number."""
    return trial._trial_id


def begin_trial(study: optuna.Study, waiting: FrozenTrial | None) -> Trial | None:
    """What `study.ask` does, with a waiting trial that is known, or else a new one; None if it waits no more.

    `ask` looks for it itself, and so reads all running trials of all workers from the database once more.
    """
    storage = study._storage
    if waiting is None:
        trial_id = storage.create_new_trial(study._study_id)
    else:
        trial_id = waiting._trial_id
        try:
            if not storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
    study._thread_local.cached_all_trials = None
    return Trial(study, trial_id)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw a parameter from a distribution; the public methods take its limits one by one."""
    return trial._suggest(name, distribution)


def user_attrs(study: optuna.Study) -> Mapping[str, Any]:
    """The attributes of a study, also of the part of it that Hyperband hands to samplers, which hides them."""
    return study._storage.get_study_user_attrs(study._study_id)


def system_attrs(study: optuna.Study) -> Mapping[str, Any]:
    """The attributes in which samplers keep data about the study; the public attributes are the user's."""
    return study._storage.get_study_system_attrs(study._study_id)


def set_system_attr(study: optuna.Study, name: str, value: Any) -> None:
    """Change one of `system_attrs`."""
    study._storage.set_study_system_attr(study._study_id, name, value)


def last_heartbeats(database: RDBStorage, trial_ids: Sequence[int]) -> tuple[datetime, dict[int, datetime]]:
    """The database's time, and the last heartbeat of each trial that has one; both without a time zone.

    Optuna's public API only says which trials it considers dead.
    """
    from optuna.storages._rdb.models import TrialHeartbeatModel as Heartbeats

    wanted = sqlalchemy.select(Heartbeats.trial_id, Heartbeats.heartbeat).where(Heartbeats.trial_id.in_(trial_ids))
    with database.engine.connect() as connection:
        now = connection.execute(sqlalchemy.select(sqlalchemy.func.now())).scalar_one()
        rows = connection.execute(wanted).all()
    # PostgreSQL's clock has a time zone and Optuna's column has none.
    return now.replace(tzinfo=None), {trial_id: moment.replace(tzinfo=None) for trial_id, moment in rows}
