"""All metrics by name: built in, installed by other packages, or registered at run time.

```python
def polite(prompts, references, predictions):
    return [float("please" in prediction.lower()) for prediction in predictions]

register_metric("polite", polite)
```
An installed package adds a metric with an entry point in group `lorahydra.metrics`. A metric needs no package: a Python
file is enough (`metrics.NAME.file`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorahydra.config.checks import did_you_mean
from lorahydra.config.registry import Registry
from lorahydra.errors import ConfigError
from lorahydra.names import BERTSCORE, JUDGE, PredictionColumn, Score

__all__ = ["METRICS", "register_metric", "unknown_metric"]

METRICS = Registry(
    "metric",
    "lorahydra.metrics.builtin",
    "lorahydra.metrics",
    frozenset({*Score, *PredictionColumn, BERTSCORE, JUDGE, "file", "none"}),
)


def register_metric(name: str, function: Callable[..., Any]) -> None:
    """Add a metric, or replace one of the same name.

    Args:
        name: What configs call it (`metrics=NAME`): letters, digits and `_`.
        function: Takes the texts of prompts, references and predictions, and returns a score from 0 to 1 for each
            example, in order. Its keyword-only arguments are settings (`metrics.NAME.KEY`).

    Raises:
        ConfigError: The name is not valid.
    """
    METRICS.register(name, function)


def unknown_metric(name: str) -> ConfigError:
    """The error of a name that no metric has."""
    names = METRICS.names
    return ConfigError(
        f"metric {name!r} does not exist{did_you_mean(name, names)}: choose from {', '.join(names)}, or name its file "
        f"with metrics.{name}.file=PATH"
    )
