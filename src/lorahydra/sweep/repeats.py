"""Trains settings again with other seeds before a winner is chosen among them (`search.seeds`).

A repeat is an MLflow run of the study, but not a trial: it does not count, and nothing is learnt from it. What is done
is kept in the study. All of it happens under the lock of the study's end, so a repeat that another process has left
unfinished is a dead one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna

from lorahydra.config.changes import SCORE_NEUTRAL_KEYS, differing
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import (
    ConfigError,
    JudgeBudgetError,
    NotRecordedError,
    OutputError,
    TrialPruned,
    clear_frames,
    ends_study,
    one_line,
)
from lorahydra.judges import load_session
from lorahydra.modeling.devices import resolve_device
from lorahydra.modeling.memory import release_memory
from lorahydra.names import ADAPTER_DIR, REPEATS_DIR, Kind, State
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.running_trial import RunningTrial, judged_by
from lorahydra.sweep.storage import address_of
from lorahydra.sweep.trial_pack import PackedTrial, TrialPack
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.trial.place import TrialResult
from lorahydra.trial.rejudge import judge_saved
from lorahydra.trial.run import run_trial
from lorahydra.trial.saved import SavedTrial, load_trial
from lorahydra.utils.interrupts import raise_if_interrupted

__all__ = ["MOST_REPEATED", "Repeats", "end_dead_repeats", "repeat_states", "repeats_are_done"]

logger = logging.getLogger("lorahydra.sweep")

REPEATS = "lorahydra.repeats"
"""User attribute of a study: the facts of each repeat, by number of the trial and seed."""
MOST_REPEATED = 4
"""Settings that are trained again."""
ENDS = (State.COMPLETE, State.FAILED)

Compose = Callable[[Mapping[str, Any], Path], ExperimentConfig]
"""The experiment with some parameters, for an output folder."""


@dataclass(frozen=True)
class Repeats:
    """Trains again what is chosen.

    Args:
        study: The study.
        run_id: Its MLflow run.
        folder: Its output folder.
        config: Its experiment.
        compose: Makes the experiment of each repeat.
        largest_pack: How many adapters may be trained side by side on a kind of device.
    """

    study: optuna.Study
    run_id: str
    folder: Path
    config: ExperimentConfig
    compose: Compose
    largest_pack: Callable[[str], int]

    def train(self, records: Sequence[TrialRecord], judged: int | str | None) -> dict[int, list[str]]:
        """Train the settings of trials with each of the other seeds, as far as that is not done.

        Judging them takes at most half of what is left of `judge.max_cost`; then the rest are left as they are.

        Args:
            records: The trials.
            judged: On how many examples each repeat is judged; None without a judge.

        Returns:
            The MLflow runs of each trial's repeats, by its number, without those that failed.

        Raises:
            LorahydraError: A fault that every repeat would meet.
        """
        pack, seeds = self.largest_pack(resolve_device(self.config.model.device).type), self._seeds
        session = None if judged is None else load_session(self.config.judge)
        try:
            with session.purse.half_of_the_rest() if session else nullcontext():
                for seed in seeds:
                    left = [record for record in records if self.facts(record.number, seed).get("state") not in ENDS]
                    places = [_RepeatPlace(self, record, seed) for record in left]
                    for start in range(0, len(places), pack):
                        self._train(places[start : start + pack], judged)
        except JudgeBudgetError:
            logger.warning(
                "Not all repeats are judged: half of judge.max_cost is left for the test split. Resume with a "
                "higher judge.max_cost to have the rest judged"
            )
        every = {record.number: [self.facts(record.number, seed) for seed in seeds] for record in records}
        return {
            number: [facts["run_id"] for facts in each if facts.get("state") == State.COMPLETE]
            for number, each in every.items()
        }

    @property
    def _seeds(self) -> list[int]:
        first = self.config.seed if self.config.training.seed is None else self.config.training.seed
        return [(first + n) % 2**32 for n in range(1, self.config.search.seeds + 1)]

    def are_done(self, records: Sequence[TrialRecord]) -> bool:
        """Whether each repeat of these trials has a result or has failed."""
        return all(self.facts(record.number, seed).get("state") in ENDS for record in records for seed in self._seeds)

    def _train(self, places: Sequence[_RepeatPlace], judged: int | str | None) -> None:
        """Train repeats with the same seed, side by side if there are several."""
        configs = {place: self._config(place, judged) for place in places}
        pairs = ((place, _kept_answers(place, config)) for place, config in configs.items())
        kept = {place: trial for place, trial in pairs if trial is not None}
        members = {
            # A pack reads only the number and the state of what a study runs.
            place.number: PackedTrial(config, place.overrides, place, cast("RunningTrial", place))
            for place, config in configs.items()
            if place not in kept
        }
        pack = TrialPack(members) if len(members) > 1 else None
        try:
            for place, config in configs.items():
                raise_if_interrupted()
                logger.info("The setting of trial %d is trained again with seed %d", place.number, place.seed)
                try:
                    if place in kept and _is_judged(kept[place], config, place):
                        continue
                    if pack is not None and place not in kept:
                        pack.result(place.number)
                    else:
                        run_trial(config, overrides=place.overrides, place=place)
                except Exception as error:
                    if ends_study(error):
                        raise
                    place.failed(error)
        finally:
            if pack is not None:
                pack.close()

    def _config(self, place: _RepeatPlace, judged: int | str | None) -> ExperimentConfig:
        """The experiment of a repeat."""
        params = {**place.params, "training.seed": place.seed}
        if judged is not None:
            params["judge.n_examples"] = judged
        place.overrides = [f"{name}={value}" for name, value in params.items()]
        return self.compose(params, (self.folder / REPEATS_DIR / f"{place.number}-{place.seed}").absolute())

    def _kept(self) -> dict[str, dict[str, Any]]:
        return dict(self.study.user_attrs.get(REPEATS, {}))

    def facts(self, number: int, seed: int) -> dict[str, Any]:
        """What the study keeps of a repeat; empty before it was begun."""
        return dict(self._kept().get(str(number), {}).get(str(seed), {}))

    def note(self, number: int, seed: int, **facts: Any) -> None:
        """Keep facts of a repeat in the study."""
        kept = self._kept()
        kept[str(number)] = {**kept.get(str(number), {}), str(seed): {**self.facts(number, seed), **facts}}
        self.study.set_user_attr(REPEATS, kept)


class _RepeatPlace:
    """The place of a repeat in its study (`lorahydra.trial.place.StudyPlace`)."""

    kind = Kind.REPEAT
    ended: TrialPruned | None = None

    def __init__(self, repeats: Repeats, record: TrialRecord, seed: int) -> None:
        self._repeats = repeats
        self.number = record.number
        self.params = record.params
        self.seed = seed
        self.state = State.RUNNING
        self.overrides: Sequence[str] = ()

    @property
    def run_id(self) -> str | None:
        """Of an earlier attempt."""
        return cast("str | None", self._repeats.facts(self.number, self.seed).get("run_id"))

    @property
    def study_name(self) -> str:
        return self._repeats.study.study_name

    @property
    def storage(self) -> str | None:
        return address_of(storage_of(self._repeats.study))

    @property
    def parent_run_id(self) -> str | None:
        return self._repeats.run_id

    def note(self, **facts: Any) -> None:
        self._repeats.note(self.number, self.seed, **facts)
        self.state = facts.get("state", self.state)

    def started(self, run_id: str, output_dir: Path) -> None:
        self.note(run_id=run_id, folder=str(output_dir.absolute()), state=State.RUNNING)

    def measured(self, loss: float) -> None:
        """Nothing is pruned."""

    def failed(self, error: Exception) -> None:
        """Note that it has no result; it is not trained again."""
        self.note(state=State.FAILED, failure=one_line(f"{type(error).__name__}: {error}"))
        logger.warning("Trial %d with seed %d failed: %s", self.number, self.seed, error)
        clear_frames(error)
        release_memory()

    def forgot(self, loss: float) -> None:
        """The limit is for trials."""

    def finished(self, result: TrialResult) -> None:
        tuned = result.scores.tuned
        if tuned.verdicts is not None:
            judged_by(self._repeats.study, tuned.verdicts.models)
        self.note(state=State.COMPLETE, combined=tuned.combined.mean)
        logger.info("Trial %d with seed %d: combined=%.4f", self.number, self.seed, tuned.combined.mean)


def _kept_answers(place: _RepeatPlace, config: ExperimentConfig) -> SavedTrial | None:
    """An earlier attempt that lacks only verdicts."""
    if config.judge.name == "none":
        return None
    try:
        kept = load_trial(Path(config.output_dir), tracking_uri=config.tracking.uri)
    except (OutputError, ConfigError):
        return None
    is_same = kept.run_id == place.run_id and not differing(kept.config, config, SCORE_NEUTRAL_KEYS)
    return kept if is_same and any((kept.folder / ADAPTER_DIR).glob("*.safetensors")) else None


def _is_judged(kept: SavedTrial, config: ExperimentConfig, place: _RepeatPlace) -> bool:
    """Judge the kept answers; whether that is possible, as their run may have been deleted from MLflow."""
    try:
        judge_saved(kept, config, place=place, tracking_uri=config.tracking.uri)
    except NotRecordedError as error:
        logger.warning("Trial %d is trained again with seed %d: %s", place.number, place.seed, error)
        return False
    return True


def repeat_states(study: optuna.Study) -> dict[str, State]:
    """The state of each repeat by its MLflow run; a running one may be dead."""
    every: Iterable[Mapping[str, Any]] = study.user_attrs.get(REPEATS, {}).values()
    facts = [facts for kept in every for facts in kept.values()]
    return {each["run_id"]: State(each["state"]) for each in facts if each.get("run_id")}


def repeats_are_done(study: optuna.Study) -> bool:
    """Whether no repeat that was begun is left to be done; without repeats, none is."""
    return all(state in ENDS for state in repeat_states(study).values())


def end_dead_repeats(study: optuna.Study) -> None:
    """Note that repeats that have not ended were interrupted; called under the lock of the study's end."""
    kept = study.user_attrs.get(REPEATS, {})
    ended = {
        number: {
            seed: facts if facts["state"] in ENDS else {**facts, "state": State.INTERRUPTED}
            for seed, facts in each.items()
        }
        for number, each in kept.items()
    }
    if ended != kept:
        study.set_user_attr(REPEATS, ended)
