"""Trials of a study that one process trains side by side.

Hydra runs a job for each trial. The first job of a pack opens the runs of all its trials, trains them together and
lets each adapter answer, so that all their answers are being judged. Each job then scores its own trial.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException
from optuna import Study

from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import LorahydraError, clear_frames, ends_study
from lorahydra.modeling.memory import release_memory
from lorahydra.names import State
from lorahydra.sweep.current import context
from lorahydra.sweep.halving import HalvingPruner, halving_of
from lorahydra.sweep.hydra_tree import typed
from lorahydra.sweep.pack_race import PackRace
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.settings import SweepSettings
from lorahydra.sweep.study_trial import place_of, saved_predictions
from lorahydra.training import TrainedAdapter, TrainingJob, train_pack
from lorahydra.trial.place import StudyPlace, TrialResult
from lorahydra.trial.predict import Answers, answer_together
from lorahydra.trial.steps import Trial
from lorahydra.utils.progress import Progress

__all__ = ["TrialPack", "packed"]

logger = logging.getLogger("lorahydra.sweep")


@contextmanager
def packed(
    settings: SweepSettings, study: Study, claimed: Sequence[RunningTrial], overrides: Sequence[Sequence[str]]
) -> Iterator[None]:
    """Train the trials that are launched in the block side by side.

    Args:
        settings: The settings of the sweep.
        study: Its study.
        claimed: The trials.
        overrides: The overrides of each trial.
    """
    members = {}
    for trial, given in zip(claimed, overrides, strict=True):
        with suppress(LorahydraError, HydraException, OmegaConfBaseException):  # it is reported at the trial's turn
            if (member := _member(settings, trial, given)) is not None:
                members[trial.number] = member
    pack = TrialPack(members, halving_of(study))
    context.packed = {number: partial(pack.result, number) for number in members}
    try:
        yield
    finally:
        context.packed = {}
        pack.close()


def _member(settings: SweepSettings, trial: RunningTrial, overrides: Sequence[str]) -> PackedTrial | None:
    """The trial as Hydra's job for it will see it; None if it needs no training."""
    tree = settings.config_loader.load_sweep_config(settings.config, list(overrides))
    with open_dict(tree):
        tree.hydra.job.id, tree.hydra.job.num = str(trial.number), trial.number
    folder = Path(str(tree.hydra.sweep.dir), str(tree.hydra.sweep.subdir)).absolute()
    config = typed(tree, str(folder))
    if saved_predictions(trial, config) is not None:
        return None
    return PackedTrial(config, list(tree.hydra.overrides.task), place_of(trial, config), trial)


@dataclass
class PackedTrial:
    """A trial of a pack."""

    config: ExperimentConfig
    overrides: Sequence[str]
    place: StudyPlace
    running: RunningTrial
    """The trial as its study knows it."""
    trial: Trial | None = None
    """None if it cannot be prepared."""
    error: Exception | None = None
    """What ended it."""


class TrialPack:
    """Trials that were claimed together.

    Args:
        members: The trials, by number.
        halving: Ends trials that are behind; None if the study's pruner looks at each trial by itself.
    """

    def __init__(self, members: Mapping[int, PackedTrial], halving: HalvingPruner | None = None) -> None:
        self._members = dict(members)
        self._halving = halving
        self._trained = False

    def result(self, number: int) -> TrialResult:
        """Train the pack, unless that was done, and score one of its trials.

        Args:
            number: The trial's number.

        Raises:
            TrialPruned: The study ended the trial early.
            LorahydraError: The trial failed.
        """
        if not self._trained:
            self._trained = True
            self._train()
        member = self._members[number]
        if member.trial is None:
            raise member.error or RuntimeError("the trial was not begun, see the first trial of its pack")
        with member.trial as trial:
            if member.error is not None:
                raise member.error
            result = trial.score()
        del self._members[number]
        logger.info("MLflow run %s: %s", result.run_id, trial.run.url)
        return result

    def close(self) -> None:
        """Close the runs of trials that did not reach their end, in the state that the study has for them."""
        for member in self._members.values():
            if member.trial is not None and member.trial.is_open:
                state = member.running.state
                with suppress(LorahydraError, KeyboardInterrupt), member.trial as trial:
                    reason = str(member.running.ended) if state is State.PRUNED else None
                    trial.run.finish(State.INTERRUPTED if state is State.RUNNING else state, reason)
        self._members.clear()

    def _train(self) -> None:
        progress = Progress()
        for member in self._members.values():
            try:
                member.trial = Trial(member.config, member.overrides, progress, member.place)
                member.trial.open()
            except Exception as error:
                if ends_study(error):
                    raise
                member.error = error
        groups: dict[tuple[object, ...], list[tuple[PackedTrial, Trial]]] = {}
        for member in self._members.values():
            if (trial := member.trial) is not None and member.error is None:
                prepared = trial.prepared
                rows = (id(prepared.base), prepared.train_tokens.digest, prepared.eval_tokens.digest)
                groups.setdefault(rows, []).append((member, trial))
        for group in groups.values():
            self._train_group(group, progress)

    def _train_group(self, group: Sequence[tuple[PackedTrial, Trial]], progress: Progress) -> None:
        """Train trials of the same base model and rows."""
        prepared = group[0][1].prepared
        if len(group) > 1:
            logger.info("Trials %s are trained together", ", ".join(str(member.running.number) for member, _ in group))
        jobs = [trial.job for _, trial in group]
        rows = prepared.train_tokens, prepared.eval_tokens
        outcomes = train_pack(prepared.base, jobs, *rows, progress, partial(self._race_of, group))
        answers = _answers(group, outcomes, progress)
        for (member, trial), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                member.error = outcome
                continue
            try:
                trial.predict(outcome, answers.get(member.running.number))
            except Exception as error:
                member.error = error
                clear_frames(error)  # the others need the memory
                release_memory()

    def _race_of(self, group: Sequence[tuple[PackedTrial, Trial]], jobs: Sequence[TrainingJob]) -> PackRace | None:
        """The comparison of those trials of a group that are trained side by side."""
        # Trials of different lengths, for example, are in one group but not in one pack.
        folders = {job.output_dir for job in jobs}
        members = {trial.job.output_dir: member.running for member, trial in group if trial.job.output_dir in folders}
        race = PackRace(self._halving, members) if self._halving is not None and len(members) > 1 else None
        for running in members.values():
            running.in_race = race is not None
        return race


def _answers(
    group: Sequence[tuple[PackedTrial, Trial]], outcomes: Sequence[TrainedAdapter | Exception], progress: Progress
) -> dict[int, Answers]:
    """The answers of the trained adapters, by number; those that cannot answer together do so at their turn."""
    alike: dict[str, list[tuple[int, Trial, Path]]] = {}
    for (member, trial), outcome in zip(group, outcomes, strict=True):
        if isinstance(outcome, TrainedAdapter):
            lora = trial.config.lora
            layers = (lora.target_modules, lora.use_dora, lora.extra)
            key = repr((trial.config.evaluation, trial.prepared.eval_set.digest, layers))
            alike.setdefault(key, []).append((member.running.number, trial, outcome.folder))
    answers: dict[int, Answers] = {}
    for members in alike.values():
        numbers, trials, folders = zip(*members, strict=True)
        if len(numbers) > 1:
            first = trials[0]
            try:
                together = answer_together(first.config, first.prepared, first.prepared.eval_set, folders, progress)
            except Exception as error:  # each reports its own at its turn
                logger.debug("trials %s answer one by one: %s", numbers, error)
                clear_frames(error)
                release_memory()
            else:
                answers |= dict(zip(numbers, together, strict=True))
    return answers
