"""What lorahydra relies on in Optuna and Hydra's Optuna sweeper beyond their public API."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage, RDBStorage

from lorahydra.sweep import compat
from lorahydra.sweep.compat import quietly

# As in `TrialQueue.claim`.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[optuna.Study]:
    with quietly():
        storage = RDBStorage(f"sqlite:///{tmp_path}/studies.db", heartbeat_interval=60, grace_period=120)
        made = optuna.create_study(storage=storage)
    yield made
    storage.engine.dispose()


def test_the_database_behind_a_study(study: optuna.Study) -> None:
    storage = compat.storage_of(study)
    assert isinstance(compat.database_of(storage), RDBStorage)
    assert isinstance(storage, compat.BaseHeartbeat)
    assert storage.get_heartbeat_interval() == 60
    assert compat.database_of(InMemoryStorage()) is None
    assert compat.database_of(compat.storage_of(optuna.create_study())) is None


def test_a_trial_is_found_by_its_id(study: optuna.Study) -> None:
    trial = study.ask()
    assert compat.suggest(trial, "r", IntDistribution(3, 3)) == 3
    stored = compat.storage_of(study).get_trial(compat.id_of(trial))
    assert stored.params == {"r": 3}
    assert compat.id_of(stored) == compat.id_of(trial)


def test_heartbeats_can_be_read(study: optuna.Study) -> None:
    storage = compat.storage_of(study)
    database = compat.database_of(storage)
    assert database is not None
    first, second = study.ask(), study.ask()
    storage.record_heartbeat(compat.id_of(first))  # type: ignore[attr-defined]
    now, beats = compat.last_heartbeats(database, [compat.id_of(first), compat.id_of(second)])
    assert set(beats) == {compat.id_of(first)}
    assert abs(now - beats[compat.id_of(first)]) < timedelta(minutes=1)


def test_what_samplers_keep_in_a_study(study: optuna.Study) -> None:
    compat.set_system_attr(study, "qmc:a", 3)
    assert compat.system_attrs(study) == {"qmc:a": 3}


def test_where_a_sampler_has_its_random_state() -> None:
    sampler = TPESampler(seed=1)
    kept = [value for value in vars(sampler).values() if isinstance(value, compat.LazyRandomState)]
    assert kept
    assert kept[0].rng.get_state(legacy=True)[0] == "MT19937"


def test_overrides_are_read_as_hydras_sweeper_reads_them() -> None:
    overrides = ["r=choice(8,16)", "rate=interval(1,2)", "seed=3"]
    space, fixed, fixed_overrides = compat.create_params_from_overrides(overrides)
    assert set(space) == {"r", "rate"}
    assert set(fixed) == {"seed"}
    assert fixed_overrides == []
