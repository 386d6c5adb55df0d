"""How parameters, numbers and times are written for people: in tables and in plots."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorahydra.sweep.trial_record import TrialRecord

__all__ = ["duration", "number", "searched", "short_names", "value_text"]


def searched(records: Iterable[TrialRecord]) -> list[str]:
    """Names of all parameters of any of the trials, in the order in which they first appear by trial number."""
    by_number = sorted(records, key=lambda record: record.number)
    return list(dict.fromkeys(name for record in by_number for name in record.params))


def short_names(params: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """The name of each parameter without its config group, or with it if the short name would be ambiguous.

    Args:
        params: Names as they stand on the command line, such as `lora.r`.
        taken: Names that mean something else where these are shown.
    """
    last = {name: re.split(r"[./]", name.lstrip("+"))[-1] for name in params}
    uses = Counter(last.values()) + Counter(set(taken))
    return {name: short if short and uses[short] == 1 else name for name, short in last.items()}


def duration(seconds: float | None) -> str:
    """A time in words: `12.3 s`, `1 min 04 s` or `2 h 05 min`; `-` if there is none."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    # Rounded before the unit is chosen, so that 59.97 is not written as 60.0 s.
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def number(value: float) -> str:
    """A number with up to four digits, tiny and huge ones as `2.0e-4`."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return str(int(value)) if value == int(value) and abs(value) >= 1000 else f"{value:.4g}"


def value_text(value: Any) -> str:
    """The value of a parameter, as it is written in a config."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return number(value)
        case Mapping():
            return f"{{{', '.join(f'{key}: {value_text(item)}' for key, item in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(value_text(item) for item in value)}]"
        case _:
            return str(value)
