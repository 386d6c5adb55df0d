"""Whether the part of a prediction that a pattern finds is that of the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from lorahydra.errors import ConfigError, MetricError
from lorahydra.metrics.text import normalized

__all__ = ["regex"]

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"


def regex(
    prompts: Sequence[str],
    references: Sequence[str],
    predictions: Sequence[str],
    *,
    pattern: str = NUMBER,
    which: str = "last",
) -> list[float]:
    """1 if what the pattern finds in the prediction equals what it finds in the reference, else 0.

    Numbers are equal if their values are: `1,000` is `1000.0`. Other texts are compared without case, punctuation and
    needless white space.

    Args:
        prompts: Not used.
        references: What is expected; the pattern must find something in each.
        predictions: What was answered.
        pattern: A regular expression; of one with a group, what its first group matched counts. By default a number.
        which: Which of several matches counts: `last` or `first`.

    Raises:
        ConfigError: A setting is not valid.
        MetricError: The pattern finds nothing in a reference.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"metrics.regex.pattern={pattern} is not a regular expression: {error}") from error
    if which not in ("last", "first"):
        raise ConfigError(f"metrics.regex.which={which} is not allowed: choose first or last")
    place = -1 if which == "last" else 0

    def found(text: str) -> str | None:
        matches = [match[1] if compiled.groups else match[0] for match in compiled.finditer(text)]
        return _value(matches[place] or "") if matches else None

    expected = [found(text) for text in references]
    if None in expected:
        raise MetricError(
            f"metric regex finds nothing in the reference of example {expected.index(None) + 1}: change "
            f"metrics.regex.pattern={pattern}"
        )
    return [float(found(text) == value) for text, value in zip(predictions, expected, strict=True)]


def _value(text: str) -> str:
    """What is compared: the value of a number, or else the normalised text."""
    plain = text.strip().replace(",", "").rstrip(".")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return normalized(text)
    return str(number.normalize() + 0) if number.is_finite() else normalized(text)
