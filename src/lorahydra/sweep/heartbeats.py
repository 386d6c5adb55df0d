"""Signs of life of trials whose process cannot be seen from here: on another machine, in another container."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from optuna.storages import BaseStorage

from lorahydra.sweep.compat import database_of, last_heartbeats

__all__ = ["Heartbeat", "Heartbeats"]


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a trial."""

    age: float
    """Seconds since then, by the database's clock; since the first look if there has never been a sign."""
    grace: float
    """Seconds of silence after which a process counts as dead."""
    renewed: bool
    """Whether it came after the first look from here: then the process lives, or lived while this one ran."""

    @property
    def dead(self) -> bool:
        """Whether it has been silent for too long."""
        return self.age > self.grace


class Heartbeats:
    """Heartbeats in a study's database of trials that run elsewhere; empty if a database keeps no heartbeats."""

    def __init__(self, storage: BaseStorage) -> None:
        self._database = database_of(storage)
        self._first: dict[int, tuple[datetime | None, datetime]] = {}
        """The heartbeat of each trial and the database's time at the first look."""

    def look(self, trial_ids: Iterable[int]) -> dict[int, Heartbeat]:
        """Read the heartbeats of trials, by their id."""
        wanted = list(trial_ids)
        database = self._database
        if not wanted or database is None or database.heartbeat_interval is None:
            return {}
        now, last = last_heartbeats(database, wanted)
        grace = float(database.grace_period or 2 * database.heartbeat_interval)
        found = {}
        for trial_id in wanted:
            beat = last.get(trial_id)
            first_beat, first_look = self._first.setdefault(trial_id, (beat, now))
            age = (now - (beat or first_look)).total_seconds()
            renewed = beat is not None and (first_beat is None or beat > first_beat)
            found[trial_id] = Heartbeat(age, grace, renewed)
        return found
