"""What a study searches: from sweeps to Optuna's distributions, in the grammar of Hydra's Optuna sweeper."""

from __future__ import annotations

import ast
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from lorahydra.errors import ConfigError
from lorahydra.sweep.compat import create_params_from_overrides

__all__ = ["SearchSpace", "corners", "grid_size", "grid_values", "inside", "on_step", "read_space", "share", "size"]

logger = logging.getLogger("lorahydra.sweep")


@dataclass(frozen=True)
class SearchSpace:
    """What is searched and what is fixed."""

    distributions: dict[str, BaseDistribution]
    fixed: dict[str, Any]
    """Overrides without a sweep."""
    fixed_overrides: list[str]
    """Overrides that remove a key."""
    first_trial: dict[str, Any] = field(default_factory=dict)
    """Parameters of trial 0; empty if no good ones are shipped for the space."""

    def describe(self) -> dict[str, str]:
        """A text for each parameter; equal distributions have equal texts."""
        return {name: str(distribution) for name, distribution in sorted(self.distributions.items())}


def read_space(
    arguments: Sequence[str],
    shipped: Mapping[str, str],
    first_trial: Mapping[str, Any],
    *,
    add_shipped: bool,
    begun: Mapping[str, str] | None = None,
) -> SearchSpace:
    """Read the sweeps.

    Args:
        arguments: Overrides, with and without sweeps; a later one replaces an earlier one of the same key.
        shipped: The space of `conf/search`, used if `arguments` sweep nothing.
        first_trial: Values of trial 0 for `shipped`.
        add_shipped: Use `shipped` in addition to the sweeps in `arguments`.
        begun: The space of the study that is resumed, as `SearchSpace.describe` gives it: it takes the place of
            `shipped`, which another version may ship with other sweeps.

    Raises:
        ConfigError: A sweep cannot be read or searched.
    """
    arguments = _last_of_each_key(arguments)
    sweeps = any(_is_sweep(argument) for argument in arguments)
    added = [f"{key}={value}" for key, value in shipped.items()] if add_shipped or not sweeps else []
    try:
        distributions, fixed, fixed_overrides = create_params_from_overrides(_last_of_each_key([*added, *arguments]))
    except (HydraException, ValueError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or f"it has a sweep that cannot be searched: {', '.join(arguments)}"
        raise ConfigError(f"the search space cannot be used: {reason}") from error
    kept: dict[str, BaseDistribution] = {}
    if begun and (add_shipped or not sweeps):
        own = {_bare(argument.partition("=")[0]) for argument in arguments}
        # In the order that they have now: samplers draw one parameter after another.
        same = {name for name, kind in distributions.items() if _bare(name) in own or begun.get(name) == str(kind)}
        kept = {
            name: _distribution(text) for name, text in begun.items() if _bare(name) not in own and name not in same
        }
        if kept or len(same) < len(distributions):
            logger.warning("The search space is the one that the study began with: %s", ", ".join(begun))
        distributions = {name: kind for name, kind in (distributions | kept).items() if name in same | kept.keys()}
    searched = {name: _once(name, kind) for name, kind in distributions.items()}
    first: dict[str, Any] = {}
    # The values of the first trial are good ones of the shipped space, of which the user may have fixed keys. They need
    # not lie in the space that a study began with, whose first trial is behind it.
    if not sweeps and not kept:
        good = {name: value for name, value in first_trial.items() if name in searched}
        if set(good) == set(searched):
            first = {name: _first(name, value, searched[name]) for name, value in good.items()}
    return SearchSpace(searched, fixed, fixed_overrides, first)


def size(distributions: Mapping[str, BaseDistribution]) -> float:
    """Number of settings in a space; infinite with a continuous parameter."""
    return math.prod(
        math.inf if _is_continuous(distribution) else grid_size(distribution, 2)
        for distribution in distributions.values()
    )


def grid_size(distribution: BaseDistribution, steps: int) -> int:
    """How many values `grid_values` gives; a range of tiny steps may have too many to write out."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if _is_continuous(distribution):
        return steps
    if isinstance(distribution, FloatDistribution) and not distribution.single():
        return _steps_below_the_end(distribution) + 1
    return len(grid_values(distribution, steps))


def grid_values(distribution: BaseDistribution, steps: int) -> Sequence[Any]:
    """The values of a parameter that a grid tries.

    Args:
        distribution: A continuous range is divided, evenly or on its logarithmic scale; others keep their values.
        steps: Number of values of a continuous range, both ends included; 2 or more.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution), "Optuna has no other kind"
    low, high = distribution.low, distribution.high
    if distribution.single():
        return [low]
    if distribution.step is not None:
        return [*(_after_steps(distribution, n) for n in range(_steps_below_the_end(distribution))), high]
    shares = [step / (steps - 1) for step in range(1, steps - 1)]
    inner = [low * (high / low) ** share if distribution.log else low + (high - low) * share for share in shares]
    # More digits would only clutter names and tables.
    return [low, *(float(f"{value:.6g}") for value in inner), high]


def corners(distributions: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """A few settings that cover every choice and both ends of every range, to check that each can be set."""
    ends = {name: _ends(distribution) for name, distribution in distributions.items()}
    most = max((len(values) for values in ends.values()), default=0)
    return [{name: values[min(index, len(values) - 1)] for name, values in ends.items()} for index in range(most)]


def _distribution(text: str) -> BaseDistribution:
    """The distribution whose text this is."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call), "the text of Optuna's distributions"
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    kinds: dict[str, Any] = {
        kind.__name__: kind for kind in (CategoricalDistribution, FloatDistribution, IntDistribution)
    }
    kind: BaseDistribution = kinds[ast.unparse(call.func)](**arguments)
    return kind


def _once(name: str, distribution: BaseDistribution) -> BaseDistribution:
    """The distribution with each choice once, because a choice that is listed twice would be tried twice."""
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    # 1, 1.0 and true are equal in Python, but they are different values of a key.
    choices = {(type(choice), choice): choice for choice in distribution.choices}
    if len(choices) == len(distribution.choices):
        return distribution
    logger.warning("%s: each of its choices is tried once: %s", name, ", ".join(map(str, choices.values())))
    return CategoricalDistribution(list(choices.values()))


def _last_of_each_key(arguments: Sequence[str]) -> list[str]:
    """The last override of each key, which may add the key (`+`) if an earlier one may.

    It is in the place of the first one: the order of the parameters decides what is drawn.
    """
    last: dict[str, str] = {}
    adds: dict[str, str] = {}
    for argument in arguments:
        bare = _bare(argument)
        key, plus = bare.partition("=")[0], argument[: -len(bare)]
        adds[key] = max(adds.get(key, ""), plus)
        last[key] = adds[key] + bare
    return list(last.values())


def _bare(override: str) -> str:
    return override.lstrip("+")


def _is_sweep(argument: str) -> bool:
    try:
        [override] = OverridesParser.create().parse_overrides([argument])
    except HydraException as error:
        raise ConfigError(f"cannot read {argument}: {str(error).splitlines()[0]}") from error
    return bool(override.is_sweep_override())


def _is_continuous(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution) and distribution.step is None and not distribution.single()


def _steps_below_the_end(distribution: FloatDistribution) -> int:
    """Number of values below the highest one, counted as Hydra's Optuna sweeper does (`FloatRange`).

    So a study that it began keeps its values.
    """
    low, high, step = (Decimal(str(each)) for each in (distribution.low, distribution.high, distribution.step))
    count, rest = divmod(high - low, step)
    below = int(count) + (rest > 0)
    return below - (float(low + step * (below - 1)) == distribution.high)


def _after_steps(distribution: FloatDistribution, count: int) -> float:
    """A value of a range with steps, without the rounding of sums of floats: 0.3 and not 0.30000000000000004."""
    low, step = (Decimal(str(each)) for each in (distribution.low, distribution.step))
    return float(low + step * count)


def on_step(distribution: BaseDistribution, value: Any) -> Any:
    """The value in the form that `grid_values` has for it, so that equal values of a range with steps are equal."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is None:
        return value
    count = round((value - distribution.low) / distribution.step)
    return distribution.high if count >= _steps_below_the_end(distribution) else _after_steps(distribution, count)


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """All choices, or both ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other kind"
    return distribution.low, distribution.high


def share(distribution: BaseDistribution, value: Any) -> float:
    """Where a value is in its range or on its logarithmic scale, 0 to 1; of a choice, its position among them."""
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.to_internal_repr(value))
    assert isinstance(distribution, IntDistribution | FloatDistribution), "Optuna has no other kind"
    ends = (distribution.low, distribution.high, value)
    low, high, place = (math.log(each) if distribution.log else float(each) for each in ends)
    return (place - low) / (high - low)


def inside(value: Any, distribution: BaseDistribution) -> Any:
    """The value in the form that the distribution has for it.

    Raises:
        ValueError: It is not in the distribution.
        TypeError: It is of another type.
    """
    if isinstance(distribution, CategoricalDistribution):
        # Choices that are words are texts as Hydra writes them: true is "true".
        for choice in distribution.choices:
            if choice == value or str(choice).strip("'\"").lower() == str(value).lower():
                return choice
    create_trial(value=0.0, params={"value": value}, distributions={"value": distribution})  # which checks the value
    return value


def _first(name: str, value: Any, distribution: BaseDistribution) -> Any:
    """The value of the first trial."""
    try:
        return inside(value, distribution)
    except (ValueError, TypeError) as error:
        message = f"search.first_trial: {name}={value} is not in its search space {distribution}"
        raise ConfigError(message) from error
