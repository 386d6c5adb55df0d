"""What a study searches, and for what (`conf/search`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lorahydra.config.checks import check_types, one_of, within
from lorahydra.config.showing import short_repr
from lorahydra.errors import ConfigError
from lorahydra.names import HEADLINES, SCORES, Score

__all__ = ["OBJECTIVES", "OBJECTIVES_OF_EXAMPLES", "SearchConfig", "objectives"]

OBJECTIVES = {
    **{score.value: SCORES[score].direction for score in (*HEADLINES, Score.LOSS)},
    "time": "minimize",
    "adapter_size": "minimize",
}
"""What a study can optimise, and its direction. `time` is the trial's wall time in s, `adapter_size` is in bytes."""
OBJECTIVES_OF_EXAMPLES = tuple(score.value for score in HEADLINES)
"""Objectives that are means over examples; `search.indifference` is a difference of these."""


@dataclass
class SearchConfig:
    """The search space of a study (`conf/search`); sweeps on the command line take its place."""

    space: dict[str, str] = field(default_factory=dict)
    """A sweep by key, for example `lora.r: choice(8, 16)` or `lora.lora_dropout: interval(0, 0.2)`. A key with an empty
    text is not searched."""
    first_trial: dict[str, Any] = field(default_factory=dict)
    """Good values, with which trial 0 is run; they must lie in the space."""
    indifference: float = 0.005
    """A difference in `combined` that does not matter: of trials that cannot be told apart and are no farther from the
    best one than this, the one with the smallest adapter wins. 0 chooses the best mean in any case."""
    stop_when_sure: bool = False
    """End the study before `n_trials` when another trial is expected to gain less than half of `indifference`; checked
    from eight complete trials on."""

    seeds: int = 0
    """Other seeds with which the trials that cannot be told from the winner are trained again before it is chosen; of
    more than four such trials, the most probable ones."""
    warm_start: Literal["auto", "off"] | bool = "off"
    """`auto` begins a new study, after trial 0, with the winners' settings of at most two ended studies of the same
    database, base model, objective and kind of data. So its trials depend on which studies are in the database."""

    max_forgetting: float | None = None
    """The most that a winner's loss on general texts may be above the untuned model's, in nats per token, for example
    0.1. Each trial is measured (`evaluation.forgetting=all`); those above it cannot win, and `sampler=auto` avoids
    their neighbourhood. No limit when unset."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if isinstance(self.warm_start, bool):  # YAML reads `off` so
            self.warm_start = "auto" if self.warm_start else "off"
        check_types("search", self)
        self.space = {key: sweep for key, sweep in self.space.items() if sweep}
        self.first_trial = {key: value for key, value in self.first_trial.items() if value != ""}
        within("search.indifference", self.indifference, 0, 1)
        within("search.seeds", self.seeds, 0, 20)
        if self.max_forgetting is not None:
            within("search.max_forgetting", self.max_forgetting, 0, 20)


def objectives(value: str | list[str]) -> list[str]:
    """The names in `objective`, which is one name or a list of different ones.

    Raises:
        ConfigError: No name is given, or a name is unknown or occurs twice.
    """
    names = [value] if isinstance(value, str) else value
    if not names:
        raise ConfigError(f"objective={value} is not allowed: give one or a list of {', '.join(OBJECTIVES)}")
    for name in names:
        one_of("objective", name, OBJECTIVES)
    if len(set(names)) < len(names):
        raise ConfigError(f"objective={value} is not allowed: name each objective once")
    return names
