"""The comparison of trials that are trained side by side: which end, what the log says, and what the study is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from lorahydra.errors import LorahydraError
from lorahydra.sweep.halving import Contender, HalvingPruner
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.training import Standing
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
        losses = standing.losses
        # At the same `lora_alpha`, which rate is the best hardly depends on the rank.
        rates = [job.training.learning_rate * job.lora.lora_alpha for job in standing.jobs]
        contenders = list(map(Contender, rates, losses, standing.parts))
        leader = min(range(len(members)), key=lambda place: losses[place])
        ahead = f"behind the {losses[leader]:.4f} of trial {members[leader].number}"
        where, outcomes = Fraction(standing.fraction).limit_denominator(100), {}
        with postponed():  # the study knows of all of this or of nothing
            for place in self._pruner.behind(contenders, standing.items):
                trial = members[place]
                if standing.fraction in trial.compared_at():
                    continue  # with more trials, before an interruption or before memory ran out
                reason = f"ended at {where}: its validation loss {losses[place]:.4f} is {ahead}"
                logger.info("Trial %d %s", trial.number, reason)
                outcomes[place] = trial.end_early(reason, losses[place])
            for trial in (trial for place, trial in enumerate(members) if place not in outcomes):
                trial.note(compared=sorted({*trial.compared_at(), standing.fraction}))
        return outcomes
