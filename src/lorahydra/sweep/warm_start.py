"""Begins a study with the best settings of earlier ones (`search.warm_start=auto`): their settings, never their scores.

The earlier studies are those of the same database that have ended. Nothing in them is trusted: whatever cannot be read,
or does not fit, is left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from lorahydra.config.compose import UNRECORDED, flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import one_line
from lorahydra.sweep.compat import storage_of
from lorahydra.sweep.dead_trials import FIXED
from lorahydra.sweep.search_space import inside, share
from lorahydra.sweep.storage import study_lock
from lorahydra.sweep.study_spec import BASE_CONTENT, DATA_CONTENT
from lorahydra.sweep.study_store import RESULT, SPEC
from lorahydra.sweep.trial_record import trial_facts

if TYPE_CHECKING:
    from lorahydra.trial.prepare import Prepared

__all__ = ["DATA_KIND", "WARM", "DataKind", "begin_warm", "data_kind"]

logger = logging.getLogger("lorahydra.sweep")

Space = Mapping[str, BaseDistribution]

WARM = "lorahydra.warm_start"
"""User attribute of a study: the trials of earlier studies whose settings it began with; it is decided once."""
DATA_KIND = "lorahydra.data_kind"
"""User attribute of a study: what kind of data it is on."""
MODEL = "model.name_or_path"
MOST = 2
"""Settings that are taken."""
MOST_STUDIES = 200
"""Studies that are looked at, the newest first."""
LENGTH_RATIO, ROWS_RATIO = 2.0, 4.0
"""How much longer, and how many times as many, the rows of data of the same kind may be."""
ALIKE = 0.05
"""Settings that differ by no more than this share of each range are the same for the search."""
DECISIVE = (
    *("training.learning_rate", "training.optim", "training.extra", "training.lr_scheduler_type"),
    *("training.per_device_train_batch_size", "training.gradient_accumulation_steps", "training.max_grad_norm"),
)
"""Keys besides those of the adapter that decide which learning rates are good."""
EXTRA = ("training.extra.", "lora.extra.")
HARMLESS = "lora.lora_dropout"
"""The only key of the adapter that does not."""


@dataclass(frozen=True)
class DataKind:
    """What makes good settings for some data good ones for other data."""

    format: str
    """Column scheme."""
    tokens: float
    """Median length of a training row."""
    rows: int
    """Training rows."""

    def is_like(self, other: Mapping[str, Any]) -> bool:
        """Whether the facts of other data are those of the same kind."""
        return (
            other.get("format") == self.format
            and _ratio(self.tokens, other.get("tokens")) <= LENGTH_RATIO
            and _ratio(self.rows, other.get("rows")) <= ROWS_RATIO
        )


@dataclass(frozen=True)
class _Found:
    """A setting of an earlier study."""

    study: str
    trial: int
    params: dict[str, Any]
    data: Literal["same", "similar"]


def data_kind(prepared: Prepared) -> DataKind | None:
    """The kind of the data; None if nothing is known of it."""
    report = prepared.splits.report
    lengths = next((split.lengths for split in report.splits if split.name == "train"), None)
    if not report.sources or lengths is None:
        return None
    return DataKind(report.sources[0].format, lengths.median, len(prepared.splits.train))


def begin_warm(
    study: optuna.Study,
    spec: Mapping[str, str],
    kind: DataKind | None,
    space: Space,
    most: int,
) -> None:
    """Queue good settings of earlier studies, unless the study has begun.

    Args:
        study: The study.
        spec: What it was begun with.
        kind: The kind of its data.
        space: What it searches.
        most: How many settings it has room for.
    """
    with study_lock(storage_of(study), study.study_name):
        trials = study.get_trials(deepcopy=False)
        if any(trial.state is not TrialState.WAITING for trial in trials):
            return
        queued = [trial.system_attrs.get(FIXED, {}) for trial in trials]
        if WARM not in study.user_attrs:
            study.set_user_attr(WARM, [asdict(one) for one in _chosen(study, spec, kind, space, most, queued)])
        found = [_Found(**one) for one in study.user_attrs[WARM]]
        # A process may have died before it had queued all of them.
        left = [one for one in found if one.params not in queued]
        for one in left:
            study.enqueue_trial(one.params)
    if not found:
        logger.info("Warm start: no ended study of the same base model and objective has settings for this one")
    for number, one in enumerate(left, start=len(trials)):
        logger.info(
            "Warm start: trial %d has the settings of the winner of study %s, trial %d (%s data)",
            *(number, one_line(one.study), one.trial, one.data),
        )


def _chosen(
    study: optuna.Study,
    spec: Mapping[str, str],
    kind: DataKind | None,
    space: Space,
    most: int,
    queued: Sequence[Mapping[str, Any]],
) -> list[_Found]:
    """The settings to begin with, which are not like those that are queued already."""
    taken: list[Mapping[str, Any]] = list(queued)
    found: list[_Found] = []
    try:
        for one in _found(storage_of(study), study.study_name, spec, kind, space):
            if len(found) < min(MOST, most) and not any(_alike(one.params, other, space) for other in taken):
                found.append(one)
                taken.append(one.params)
    except Exception as error:
        # Another program, or another version, may have written anything.
        logger.warning("Warm start: earlier studies cannot be read: %s", one_line(error))
    return found


def _found(
    storage: BaseStorage,
    own: str,
    spec: Mapping[str, str],
    kind: DataKind | None,
    space: Space,
) -> Iterator[_Found]:
    """The winners of earlier studies whose settings fit: those of the same data first, and the newest first."""
    similar = []
    for earlier in list(reversed(storage.get_all_studies()))[:MOST_STUDIES]:
        attributes = earlier.user_attrs
        try:
            data = _data(spec, kind, attributes)
            if earlier.study_name == own or data is None:
                continue
            study_id = storage.get_study_id_from_name(earlier.study_name)
            trials = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
            best = int(attributes[RESULT]["best"])
            winner = next(trial for trial in trials if trial.number == best)
            params = _fitted(winner.params, spec, attributes[SPEC], space)
            if params is None or trial_facts(winner).get("interrupted"):
                continue
            one = _Found(earlier.study_name, best, params, data)
        except Exception as error:
            logger.debug("Nothing can be taken from study %s: %s", one_line(earlier.study_name), one_line(error))
            continue
        if data == "same":
            yield one
        else:
            similar.append(one)
    yield from similar


def _data(
    spec: Mapping[str, str], kind: DataKind | None, attributes: Mapping[str, Any]
) -> Literal["same", "similar"] | None:
    """How an earlier study's data are related to those of this one; None if it is not a study to learn from."""
    before = attributes.get(SPEC) or {}
    if not attributes.get(RESULT) or before.get("objective") != spec.get("objective"):
        return None
    model = BASE_CONTENT if all(each.get(BASE_CONTENT, "None") != "None" for each in (spec, before)) else MODEL
    if before.get(model) is None or before.get(model) != spec.get(model):
        return None
    digests = [str(each.get(DATA_CONTENT, "")).split()[:1] for each in (spec, before)]
    if digests[0] and digests[0] == digests[1]:
        return "same"
    return "similar" if kind is not None and kind.is_like(attributes.get(DATA_KIND) or {}) else None


def _fitted(
    params: Mapping[str, Any], spec: Mapping[str, str], before: Mapping[str, str], space: Space
) -> dict[str, Any] | None:
    """The settings of an earlier trial in the space of this study; None if they mean something else here.

    A number beyond a range becomes the end of the range.
    """
    if any(name.partition(".")[0] not in ("lora", "training") for name in params):
        return None
    defaults = {**flatten(ExperimentConfig()), **UNRECORDED}

    def had(name: str) -> Any:
        return params.get(name, before.get(name, defaults.get(name)))

    fixed = [name for name in spec if name in DECISIVE or (name.startswith("lora.") and name != HARMLESS)]
    # A setting has a name here only if it is given.
    fixed += [name for name in {**spec, **before, **params} if name.startswith(EXTRA)]
    if any(_text(had(name)) != _text(spec.get(name, defaults.get(name))) for name in fixed if name not in space):
        return None
    return {name: inside(_clipped(had(name), kind), kind) for name, kind in space.items()}


def _text(value: Any) -> str:
    """A value as text, so that equal numbers are equal, and true is the word."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return repr(float(value))
    except (TypeError, ValueError):
        return str(value).strip("'\"").lower()


def _clipped(value: Any, kind: BaseDistribution) -> Any:
    if not isinstance(kind, IntDistribution | FloatDistribution):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a number")
    number = min(max(number, kind.low), kind.high)
    return round(number) if isinstance(kind, IntDistribution) else number


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], space: Space) -> bool:
    return all(name in other and _near(one[name], other[name], kind) for name, kind in space.items())


def _near(one: Any, other: Any, kind: BaseDistribution) -> bool:
    if isinstance(kind, CategoricalDistribution) or kind.single():
        return bool(one == other)
    return abs(share(kind, one) - share(kind, other)) <= ALIKE


def _ratio(one: float, other: Any) -> float:
    low, high = sorted((one, float(other)))
    return high / low if low > 0 else math.inf
