"""What must stay the same for the trials of a study to be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lorahydra.config.compose import flatten
from lorahydra.config.judge import FREE as FREE_OF_JUDGE
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import StudyError

__all__ = ["CONTENT", "check_same", "experiment_spec"]

FREE = {
    *("output_dir", "study", "model.device"),
    *("evaluation.batch_size", "evaluation.bertscore_batch_size", "evaluation.bootstrap_samples"),
    *("training.save_steps", "training.resume", "training.logging_steps", "training.per_device_eval_batch_size"),
    *(f"judge.{name}" for name in FREE_OF_JUDGE - {"repeats", "min_coverage"}),
}
FREE_GROUPS = ("tracking.", "search.")
SHOWN = 6
CONTENT = "content"
"""Begins the names of digests."""


def experiment_spec(
    config: ExperimentConfig, space: Mapping[str, str], objectives: Sequence[str], searched: Iterable[str]
) -> dict[str, str]:
    """Everything that decides what a score means, as text by name.

    Args:
        config: The experiment.
        space: Distributions by parameter.
        objectives: What is optimised.
        searched: Keys that trials set themselves.
    """
    spec = {"objective": ", ".join(objectives)}
    spec |= {f"search of {name}": text for name, text in space.items()}
    own = set(searched)
    for key, value in flatten(config).items():
        varies = any(key == name or key.startswith(f"{name}.") for name in own)
        if key not in FREE and not key.startswith(FREE_GROUPS) and not varies and key != "objective":
            spec[key] = str(value)
    return spec


def check_same(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Make sure that new trials can be compared with the old ones.

    Raises:
        StudyError: They cannot; the message shows the difference.
    """
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    # Not known to a process that only starts workers.
    keys = [key for key in keys if not key.startswith(CONTENT) or (key in before and key in now)]
    if not keys:
        return
    shown = [f"{key}: {_text(before.get(key))} → {_text(now.get(key))}" for key in keys[:SHOWN]]
    more = f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    raise StudyError(
        f"study {name} cannot go on with other settings, its trials could not be compared ({'; '.join(shown)}{more}): "
        "undo the change, or begin a new study with another name"
    )


def _text(value: str | None) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= 120 else f"{value[:120]}…"
