"""Which losses of a study compare: those of trials that have the same data, base model, length and kind of loss.

A DPO loss depends on beta, and a measurement after one epoch is the end of one schedule and the middle of another. So a
loss is compared only with those of trials that have equal values of such parameters, where they are searched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner

from lorahydra.sweep.compat import user_attrs
from lorahydra.sweep.study_spec import SPEC

__all__ = ["log_scale", "scale_parameters"]

logger = logging.getLogger("lorahydra.sweep")

KINDS = {"training.method", "training.dpo_beta", "training.dpo_label_smoothing"}
LENGTHS = {"training.num_train_epochs", "training.max_steps", "training.evals_per_epoch"}
"""Of these only the losses at the end compare."""
GROUPS = {"experiment", "data", "model", "training", "seed"}
"""Keys, and groups with all their keys, that mean this in an experiment, but maybe not in another program. The seed
draws the validation split."""
MAX_STEPS, UNSET = "training.max_steps", "-1"
BATCH = {"training.per_device_train_batch_size", "training.gradient_accumulation_steps"}
"""With a fixed number of steps, they decide how many epochs these are."""


def scale_parameters(study: Study) -> list[str]:
    """The parameters of a study's trials whose values must be equal for the losses of two trials to compare."""
    trials = study.get_trials(deepcopy=False)
    searched = {name for trial in trials for name, kind in trial.distributions.items() if not kind.single()}
    return _decisive(searched, user_attrs(study).get(SPEC, {})) if searched else []


def log_scale(study: Study, space: Mapping[str, BaseDistribution]) -> None:
    """Say that the pruner cannot compare all trials, if it cannot."""
    spec = user_attrs(study).get(SPEC, {})
    names = _decisive((name for name, kind in space.items() if not kind.single()), spec)
    others = [name for name in names if name.lstrip("+") not in LENGTHS]
    if others and "loss" in spec.get("objective", "").split(", "):
        logger.warning(
            "objective=loss: the losses of trials that differ in %s do not compare, so the lowest says nothing: give "
            "one value, or choose another objective",
            ", ".join(others),
        )
    if names and not isinstance(study.pruner, NopPruner):
        logger.info(
            "The losses of trials that differ in %s do not compare: only trials of a pack that are equal in this are "
            "ended early by their losses",
            ", ".join(names),
        )


def _decisive(searched: Iterable[str], spec: Mapping[str, str]) -> list[str]:
    decisive = KINDS | LENGTHS | (BATCH if spec.get(MAX_STEPS, UNSET) != UNSET else set())

    def decides(name: str) -> bool:
        name = name.lstrip("+")
        in_group = name in GROUPS or name.startswith(("data.", "model."))
        return name in decisive or ("objective" in spec and in_group)

    return sorted(filter(decides, searched))
