"""Runs a recorded trial again with the configuration in MLflow, and compares the metrics.

```python
recorded = read_recorded("3f2a…", tracking_uri="sqlite:///mlflow.db")
for line in recorded.differences():   # in code, packages, machine
    print(line)
for metric in reproduce(recorded, output_dir=Path("outputs/again")):
    print(metric.name, metric.agreement)
```
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from lorahydra.config.changes import REPRODUCTION_NEUTRAL_KEYS, differing
from lorahydra.config.compose import flatten, restored_config
from lorahydra.config.schema import ExperimentConfig, TrackingConfig
from lorahydra.data import load_splits
from lorahydra.errors import ConfigError, DataError, TrackingError
from lorahydra.modeling.devices import cpu_threads, resolve_device
from lorahydra.names import CONFIG_FILE, ENVIRONMENT_FILE, OVERRIDES_FILE, Kind, Metric, Score, State, Tag
from lorahydra.tracking import Points, RecordedRun, read_metrics, read_run, read_text, set_tags
from lorahydra.trial.record import CONTEXTS
from lorahydra.utils.environment import differences, environment

__all__ = ["Agreement", "Compared", "Recorded", "compare", "read_recorded", "reproduce"]

logger = logging.getLogger(__name__)

NOT_COMPARED = ("time/", "system/", "judge/", "study/", "final/")
"""Prefixes of metrics that say how long a run took and what it cost, or that were added after its end."""
LATER = f"/{Score.JUDGE_SCORE_LENGTH_CONTROLLED}"
"""End of the names of metrics that earlier versions did not record."""


class Agreement(StrEnum):
    """How a metric of the new run agrees with the old one."""

    EQUAL = "equal"
    """Equal to the last digit, at every step."""
    CLOSE = "within tolerance"
    DIFFERENT = "different"
    MISSING = "missing"
    """Only one of the runs has it, or not at the same steps."""


@dataclass(frozen=True)
class Compared:
    """One metric of both runs."""

    name: str
    agreement: Agreement
    before: float | None
    """The last value."""
    again: float | None
    difference: float
    """The largest absolute difference at a step; NaN if there is no step to compare."""


@dataclass(frozen=True)
class Recorded:
    """A run that can be run again."""

    run: RecordedRun
    store: TrackingConfig
    """The store that it is in; the new run may be recorded in another one."""
    config: ExperimentConfig
    """The recorded configuration, except for where the new run is recorded."""
    overrides: tuple[str, ...]
    environment: Mapping[str, Any]
    """Empty for a run of a version that did not record it."""
    changed: tuple[str, ...] = ()
    """Keys that the caller changed and on which metrics depend, such as `lora.r`."""

    @property
    def threads(self) -> int | None:
        """On how many threads torch computed; None if that was not recorded."""
        threads: int | None = self.environment.get("hardware", {}).get("threads")
        return threads

    def differences(self) -> list[str]:
        """Differences in settings, code, packages and machine, one line each."""
        now = flatten(self.config)
        lines = [f"config: {key} is {now.get(key)} now" for key in self.changed]
        with cpu_threads(self.threads):
            lines += differences(self.environment, environment(str(resolve_device(self.config.model.device))))
        return lines


def read_recorded(run_id: str, *, tracking_uri: str, overrides: Sequence[str] = ()) -> Recorded:
    """Read everything about a trial from MLflow.

    Args:
        run_id: MLflow's run of a trial, or of a single run.
        tracking_uri: Where the store is.
        overrides: Keys that have another value now, as `key=value`, for example the place of the data.

    Raises:
        ConfigError: The run is a study, or was not recorded by lorahydra.
        TrackingError: The store cannot be reached, or does not have the run.
    """
    store = TrackingConfig(uri=tracking_uri, run_id=run_id)
    run = read_run(store, run_id)
    kind = run.tags.get(Tag.KIND)
    if kind == Kind.STUDY:
        best = run.tags.get(Tag.BEST_RUN)
        hint = f", for example its best: lorahydra reproduce {best}" if best else ""
        raise ConfigError(f"run {run_id} is the study {run.name}: give the run of one of its trials{hint}")
    if adapter := run.tags.get(Tag.EVALUATES):
        raise ConfigError(f"run {run_id} only scored an adapter: `lorahydra evaluate {adapter}` scores it again")
    text = read_text(store, run_id, CONFIG_FILE)
    if kind is None or text is None:
        raise ConfigError(f"run {run_id} ({run.name}) has no {CONFIG_FILE}: it was not recorded by lorahydra")
    tracking = {"uri": tracking_uri, "experiment_name": run.experiment, "run_id": None, "run_name": None}
    config = _config(text, overrides, tracking, run_id)
    return Recorded(
        run=run,
        store=store,
        config=config,
        overrides=tuple(map(str, yaml.safe_load(read_text(store, run_id, OVERRIDES_FILE) or "[]"))),
        environment=_mapping(read_text(store, run_id, ENVIRONMENT_FILE)),
        changed=tuple(differing(_config(text, (), tracking, run_id), config, REPRODUCTION_NEUTRAL_KEYS)),
    )


def reproduce(recorded: Recorded, *, output_dir: Path, tolerance: float = 1e-3) -> list[Compared]:
    """Run a recorded trial again, as a new run beside it, and compare losses and scores.

    Torch computes on as many threads as in the recorded run, because their number decides how sums are rounded.

    Args:
        recorded: The trial.
        output_dir: Folder of the new run.
        tolerance: Relative difference up to which a metric counts as `within tolerance`.

    Raises:
        DataError: The data are not those of the run; nothing was trained.
        LorahydraError: The trial cannot be run again: its data, model or judge cannot be used.
    """
    from lorahydra.trial.run import run_trial

    config = dataclasses.replace(recorded.config, output_dir=str(output_dir))
    _check_data(recorded)
    before = read_metrics(recorded.store, recorded.run.run_id)
    with cpu_threads(recorded.threads):
        result = run_trial(config, overrides=recorded.overrides)
    store = config.tracking
    set_tags(store, result.run_id, {Tag.REPRODUCES: recorded.run.run_id})
    _warn_of_other_inputs(recorded.run, read_run(store, result.run_id))
    pruned = recorded.run.tags.get(Tag.STATE) == State.PRUNED
    return compare(before, read_metrics(store, result.run_id), tolerance=tolerance, cut=pruned)


def compare(
    before: Mapping[str, Points], again: Mapping[str, Points], *, tolerance: float, cut: bool = False
) -> list[Compared]:
    """Compare the metrics of two runs, step by step; times and costs are left out.

    A point within the relative `tolerance` counts as close. If the first run ended early (`cut`), points that only the
    second run has are ignored.
    """
    names = [name for name in {**before, **again} if not name.startswith(NOT_COMPARED)]
    names = [name for name in names if name in before or not (cut or name.endswith(LATER))]
    names = [name for name in names if name != Metric.TRAIN_TOKENS_PER_SECOND]
    return [
        _compared(name, _last_points(before.get(name, ())), _last_points(again.get(name, ())), tolerance, cut)
        for name in sorted(names)
    ]


def _last_points(points: Points) -> Points:
    """The last point of each step: a run that was resumed, or one of an older version, may have several."""
    return tuple(dict(points).items())


def _compared(name: str, before: Points, again: Points, tolerance: float, cut: bool) -> Compared:
    last_before, last_again = (points[-1][1] if points else None for points in (before, again))
    if cut:
        again = again[: len(before)]
    if not before or [step for step, _ in before] != [step for step, _ in again]:
        return Compared(name, Agreement.MISSING, last_before, last_again, math.nan)
    pairs = [(old, new) for (_, old), (_, new) in zip(before, again, strict=True)]
    gaps = [0.0 if _same(old, new) else abs(old - new) for old, new in pairs]
    if all(_same(old, new) for old, new in pairs):
        agreement = Agreement.EQUAL
    elif all(_same(old, new) or math.isclose(old, new, rel_tol=tolerance, abs_tol=1e-6) for old, new in pairs):
        agreement = Agreement.CLOSE
    else:
        agreement = Agreement.DIFFERENT
    return Compared(name, agreement, last_before, again[-1][1], max(gaps))


def _same(old: float, new: float) -> bool:
    return old == new or (math.isnan(old) and math.isnan(new))


def _check_data(recorded: Recorded) -> None:
    """Compare the digests of the data, so that no hours are spent on other data."""
    splits = load_splits(recorded.config.data, recorded.config.seed)
    now = {CONTEXTS[split.name]: split.digest for split in (splits.train, splits.validation)}
    for dataset in recorded.run.datasets:
        digest = now.get(dataset.context)
        if digest is None or digest.startswith(dataset.digest):
            continue
        change = f"the {dataset.context} data are not what they were: digest {dataset.digest} → {digest}"
        if not any(key == "seed" or key.startswith("data.") for key in recorded.changed):
            raise DataError(
                f"{change}: give the rows of the run, for example with data.train_file=…, or set a seed or a key of "
                "data that explains the difference"
            )
        logger.warning("%s%s", change[0].upper(), change[1:])


def _warn_of_other_inputs(before: RecordedRun, again: RecordedRun) -> None:
    """Warn of another base model or judge, with which no metric can be expected to be the same."""
    for name in (Tag.BASE_DIGEST, Tag.JUDGE_MODEL, Tag.JUDGE_PROMPT):
        old, new = before.tags.get(name), again.tags.get(name)
        if old != new:
            logger.warning("%s has changed: %s → %s", name, old, new)


def _config(text: str, overrides: Sequence[str], tracking: Mapping[str, Any], run_id: str) -> ExperimentConfig:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the {CONFIG_FILE} of run {run_id} is not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(values.get(key), dict) for key in ("tracking", "training")):
        raise ConfigError(f"the {CONFIG_FILE} of run {run_id} is not a configuration of lorahydra")
    values |= {"study": None, "tracking": values["tracking"] | tracking}
    values["training"]["resume"] = False
    try:
        return restored_config(values, overrides)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {CONFIG_FILE} of run {run_id}, or in the changes to it)") from error


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text) if text else {}
    except ValueError as error:
        raise TrackingError(f"{ENVIRONMENT_FILE} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}
