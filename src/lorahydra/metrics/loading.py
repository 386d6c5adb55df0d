"""Metrics by name, with their settings, as functions of predictions that are safe to call."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahydra.config.checks import only_keys
from lorahydra.config.metric_registry import METRICS, unknown_metric
from lorahydra.errors import ConfigError, MetricError, reason

__all__ = ["Metric", "MetricScores", "load_metrics"]

FILE = "file"
"""Setting of a metric that is a function in a file of the user."""
FEW = 20
"""References that a metric is tried on."""


@dataclass(frozen=True)
class MetricScores:
    """What a metric says of predictions."""

    examples: list[float]
    """The score of each, 0…1."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """What it says of all of them together, by the name that the metric gives it."""


@dataclass(frozen=True)
class Metric:
    """A chosen metric."""

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]

    def score(self, prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> MetricScores:
        """Score predictions, which are in the order of the prompts.

        Raises:
            MetricError: The metric fails, or returns something else than a number from 0 to 1 for each prediction.
            ConfigError: One of its settings is not valid.
        """
        if not predictions:
            return MetricScores([])
        try:
            found = self.function(list(prompts), list(references), list(predictions), **self.settings)
        except (ConfigError, MetricError):
            raise
        except Exception as error:
            raise MetricError(f"metric {self.name} fails: {reason(error)}") from error
        scores = found if isinstance(found, MetricScores) else MetricScores(found)
        return MetricScores(self._checked(scores.examples, len(predictions)), scores.totals)

    def _checked(self, scores: Any, count: int) -> list[float]:
        try:
            numbers = [float(score) for score in scores]
        except (TypeError, ValueError) as error:
            raise MetricError(f"metric {self.name} must return a list of numbers: {reason(error)}") from error
        if len(numbers) != count:
            raise MetricError(f"metric {self.name} returned {len(numbers)} scores for {count} predictions")
        for place, score in enumerate(numbers):
            if not 0 <= score <= 1 or math.isnan(score):
                raise MetricError(f"metric {self.name} gave prediction {place + 1} the score {score}, not one in 0…1")
        return numbers

    def try_out(self, prompts: Sequence[str], references: Sequence[str]) -> None:
        """Score a few references as if they were predictions, so that a fault shows before anything is trained.

        Raises:
            MetricError, ConfigError: As for `score`.
        """
        self.score(prompts[:FEW], references[:FEW], references[:FEW])


def load_metrics(chosen: Mapping[str, Any]) -> dict[str, Metric]:
    """The chosen metrics, by name.

    Args:
        chosen: Their settings, by name.

    Raises:
        ConfigError: A name or a setting is unknown, or a file has no function for the metric.
    """
    return {name: _load(name, dict(settings or {})) for name, settings in chosen.items()}


def _load(name: str, settings: dict[str, Any]) -> Metric:
    file = settings.pop(FILE, None)
    if file is not None:
        function = _from_file(name, Path(str(file)).expanduser())
    elif name in METRICS.names:
        function = METRICS.load(name)
    else:
        raise unknown_metric(name)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return Metric(name, function, settings)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        only_keys(f"metrics.{name}", settings, [each.name for each in parameters if each.kind is each.KEYWORD_ONLY])
    return Metric(name, function, settings)


def _from_file(name: str, path: Path) -> Callable[..., Any]:
    """The function of the metric's name in a Python file, or else the only function that is defined there."""
    key = f"metrics.{name}.{FILE}={path}"
    if not path.is_file():
        raise ConfigError(f"{key} is not a Python file")
    written = path.stat()
    return _imported(name, key, path.absolute(), (written.st_mtime_ns, written.st_size))


@functools.lru_cache(maxsize=32)
def _imported(name: str, key: str, path: Path, written: tuple[int, int]) -> Callable[..., Any]:
    """The same, once for all trials of a process, unless the file was `written` again: it may load a model."""
    spec = importlib.util.spec_from_file_location(f"lorahydra_metric_{name}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{key} cannot be imported: {reason(error)}") from error
    own = {
        label: value
        for label, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not label.startswith("_")
    }
    if name not in own and len(own) != 1:
        raise ConfigError(f"{key} must define a function with the name {name}, or a single function")
    function: Callable[..., Any] = own[name] if name in own else next(iter(own.values()))
    return function
