"""The comparison of trials that are trained side by side: which end, what the log says, and what the study is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from lorahydra.errors import LorahydraError
from lorahydra.names import State
from lorahydra.sweep.halving import Contender, HalvingPruner
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.training import Standing, TrainingJob
from lorahydra.utils.interrupts import postponed

__all__ = ["PackRace"]

logger = logging.getLogger("lorahydra.sweep")


class PackRace:
    """Ends the trials of a pack that are behind (`lorahydra.training.Race`).

    Args:
        pruner: Decides which.
        members: The trials, by the folder of their job.
    """

    def __init__(self, pruner: HalvingPruner, members: Mapping[Path, RunningTrial]) -> None:
        self._pruner = pruner
        self._members = members
        self.fractions = pruner.fractions

    def ended(self, standing: Standing) -> Mapping[int, LorahydraError]:
        """Which trials end here; the study is told."""
        members = [self._members[job.output_dir] for job in standing.jobs]
        contenders = list(map(Contender, map(_rate, standing.jobs), standing.losses, standing.parts))
        alike: dict[object, list[int]] = {}
        for place, trial in enumerate(members):
            alike.setdefault(trial.loss_scale, []).append(place)
        behind: dict[int, str] = {}
        where = Fraction(standing.fraction).limit_denominator(100)
        for places in alike.values():
            leader = min(places, key=lambda place: standing.losses[place])
            ahead = f"behind the {standing.losses[leader]:.4f} of trial {members[leader].number}"
            for place in self._pruner.behind([contenders[place] for place in places], standing.items):
                loss = standing.losses[places[place]]
                behind[places[place]] = f"ended at {where}: its validation loss {loss:.4f} is {ahead}"
        outcomes = {}
        with postponed():  # the study knows of all of this or of nothing
            for place, trial in enumerate(members):
                # It may have been compared before with more trials: before an interruption, or before memory ran out.
                reason = None if standing.fraction in trial.compared_at() else behind.get(place)
                error = trial.compared(standing.fraction, standing.losses[place], reason)
                if error is not None:
                    outcomes[place] = error
                if trial.state is State.PRUNED:
                    logger.info("Trial %d %s", trial.number, reason)
        return outcomes


def _rate(job: TrainingJob) -> float:
    """The learning rate, scaled such that equal ones train about equally fast.

    At the same `lora_alpha`, which rate is the best hardly depends on the rank, unless the update is divided by the
    root of the rank (rank-stabilised). With LoRA+, the rate of B decides how fast the update grows.
    """
    lora = job.lora
    return job.training.learning_rate * lora.plus_ratio * lora.lora_alpha * (lora.r**0.5 if lora.use_rslora else 1.0)
