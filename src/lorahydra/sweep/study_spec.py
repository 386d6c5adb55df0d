"""The settings that must stay the same, so that the trials of a study can be compared."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from lorahydra.config.changes import SCORE_NEUTRAL_KEYS, may_change
from lorahydra.config.compose import UNRECORDED, flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import StudyError

__all__ = [
    "BASE_CONTENT",
    "DATA_CONTENT",
    "ROWS_CONTENT",
    "SPEC",
    "begun_space",
    "check_same",
    "experiment_spec",
    "kept_settings",
]

logger = logging.getLogger(__name__)

SPEC = "lorahydra.spec"
"""User attribute of a study: these settings."""
SHOWN = 6
CONTENT = "content"
"""Prefix of the names of digests."""
DATA_CONTENT = f"{CONTENT} of the data"
"""Digests of the splits, separated by spaces: training, validation and, if there is one, test."""
ROWS_CONTENT = f"{CONTENT} of the rows that fit"
"""Digest of the training and validation rows that the length limits leave."""
BASE_CONTENT = f"{CONTENT} of the base model"
"""Digest of the base model's files."""
SEARCH = "search of "
"""Prefix of the names of searched parameters."""
OVERLONG, MAX_LENGTH = "data.overlong", "data.max_length"
SPLIT_VERSION = "data.split_version"


def kept_settings(spec: Mapping[str, str], given: Iterable[str]) -> list[str]:
    """Overrides that keep the settings with which a study of an older version began, unless they are given.

    Args:
        spec: The settings with which the study began; empty for a new one.
        given: The overrides of the command line.
    """
    chosen, defaults = [override.partition("=")[0].lstrip("+") for override in given], flatten(ExperimentConfig())
    kept = []
    for key, unrecorded in UNRECORDED.items():
        began = spec.get(key, str(unrecorded))
        begun = any(name.startswith(f"{key.partition('.')[0]}.") for name in spec)
        if begun and began != str(defaults[key]) and key not in chosen:
            kept.append(f"{key}={began}")
    return kept


def begun_space(spec: Mapping[str, str]) -> dict[str, str]:
    """The search space in the settings with which a study began, as text by parameter."""
    return {name.removeprefix(SEARCH): text for name, text in spec.items() if name.startswith(SEARCH)}


def experiment_spec(
    config: ExperimentConfig, space: Mapping[str, str], objectives: Sequence[str], searched: Collection[str]
) -> dict[str, str]:
    """Everything that affects a score, as text by name; values of the `searched` keys differ between trials."""
    spec = {"objective": ", ".join(objectives)}
    spec |= {f"{SEARCH}{name}": text for name, text in space.items()}
    for key, value in flatten(config).items():
        varies = any(key == name or key.startswith(f"{name}.") for name in searched)
        if not may_change(key, SCORE_NEUTRAL_KEYS) and not varies and key != "objective":
            spec[key] = str(value)
    return spec


def check_same(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Make sure that new trials can be compared with the old ones.

    A key that an older version did not have counts as its default.

    Raises:
        StudyError: They cannot; the message shows the difference.
    """
    defaults = {key: str(value) for key, value in flatten(ExperimentConfig()).items()}
    before = {**{key: str(value) for key, value in UNRECORDED.items() if key in now}, **before}
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key, defaults.get(key)) != now.get(key)]
    # A process that only starts workers does not compute digests.
    keys = [key for key in keys if not key.startswith(CONTENT) or (key in before and key in now)]
    keys = [key for key in keys if not may_change(key, SCORE_NEUTRAL_KEYS)]
    if _same_rows(before, now):
        keys = [key for key in keys if key not in (OVERLONG, MAX_LENGTH)]
    if DATA_CONTENT in before and DATA_CONTENT in now and DATA_CONTENT not in keys and SPLIT_VERSION in keys:
        keys.remove(SPLIT_VERSION)
    if DATA_CONTENT in keys and _chosen_by(before) == _chosen_by(now):
        keys.remove(DATA_CONTENT)
        logger.warning(
            "The test split of study %s is not the one that it began with: its winner is scored on the new one", name
        )
    if ROWS_CONTENT not in before and _scores_fewer(before, now):
        keys.append(ROWS_CONTENT)
    if not keys:
        return
    shown = [f"{key}: {_text(before.get(key))} → {_text(now.get(key))}" for key in keys[:SHOWN]]
    shown += [f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    raise StudyError(
        f"study {name} cannot be resumed with other settings, because its trials could not be compared "
        f"({'; '.join(shown)}): undo the change, or begin a new study with another name"
    )


def _same_rows(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether another length limit leaves the same rows for training and validation as before.

    With `error` no row is over the limit, so a higher limit, or another treatment of such rows, changes nothing.
    Otherwise the digests decide.
    """
    if ROWS_CONTENT in before:
        return before[ROWS_CONTENT] == now.get(ROWS_CONTENT, before[ROWS_CONTENT])
    limits = [int(spec.get(MAX_LENGTH, 0)) for spec in (before, now)]
    return before.get(OVERLONG) == "error" and limits[0] <= limits[1]


def _scores_fewer(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether validation rows are left out that an older version, which had no limit for them, scored."""
    return DATA_CONTENT in before and ROWS_CONTENT in now and _chosen_by(before)[1] != now[ROWS_CONTENT].split()[1]


def _chosen_by(spec: Mapping[str, str]) -> list[str]:
    """The digests of the training and validation splits."""
    return spec[DATA_CONTENT].split()[:2]


def _text(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= 120 else f"{value[:120]}…"
