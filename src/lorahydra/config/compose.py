"""Makes the typed config from YAML and overrides, once, at the edge of the program.

```python
config = compose(["experiment=demo", "lora.r=8"])   # → ExperimentConfig
```
`train.py` lets Hydra compose instead and calls `to_config`. Everything that a user can get wrong on the way becomes a
`ConfigError` of one line (`explain`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lorahydra.config.addresses import refuse_shared_address
from lorahydra.config.checks import did_you_mean, type_hints, wrong_type
from lorahydra.config.environment import register_resolver
from lorahydra.config.judge import NOT_A_NAME, refuse_secret
from lorahydra.config.judge_registry import registered_judges
from lorahydra.config.metric_registry import METRICS, unknown_metric
from lorahydra.config.own_settings import settle_judges
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, JudgeNotFoundError, LorahydraError, causes

__all__ = [
    "UNRECORDED",
    "compose",
    "compose_hydra",
    "config_dir",
    "explain",
    "flatten",
    "hydra_overrides",
    "literal",
    "register",
    "restored_config",
    "text_keys",
    "to_config",
    "to_yaml",
]

GROUPS = ("metrics",)
"""Dictionaries that are groups of `conf/`, too: `metrics=NAME` chooses one of its files."""
LAUNCHERS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray", "joblib": "joblib"}
"""Launchers that are packages of their own, and the extras that install them."""
UNRECORDED: Mapping[str, object] = {
    "data.split_version": 1,
    "judge.prompt_wording": 1,
    "training.keep": "last",
    "training.matmul_precision": "highest",
}
"""Values that older versions, which did not record these keys, used."""


def register() -> None:
    """Register the schema and the resolvers with Hydra; may be called again."""
    _store(tuple(registered_judges()), tuple(METRICS.names))
    register_resolver()


@functools.lru_cache(maxsize=1)
def _store(judges: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    """Register the schema, judges and metrics; cached, because it takes an eighth of the time of a composition."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=ExperimentConfig, replace=True)
    for name in judges:
        # A judge of another package has no file in conf/. If there is a file, it has priority.
        node = {"defaults": [{"rubric": "default"}, "_self_"], "name": name}
        store.store(group="judge", name=name, node=node, replace=True)
    for name in metrics:
        _store_metric(name)


def _store_metric(name: str) -> None:
    """Make a metric one that `metrics=` can choose, also if it has no file in conf/."""
    ConfigStore.instance().store(group="metrics", name=name, node={name: {}}, replace=True)


def config_dir() -> Path:
    """Folder of the shipped configs: inside the installed package, or `conf/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def compose(overrides: Sequence[str] = (), *, folder: Path | None = None) -> ExperimentConfig:
    """Compose the shipped configs, or those of another folder, with overrides such as `lora.r=8`.

    Raises:
        ConfigError: The overrides have a mistake; the message is one line.
    """
    try:
        return to_config(_composed(overrides, folder))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error) from error


def compose_hydra(overrides: Sequence[str] = ()) -> DictConfig:
    """Hydra's own settings with the shipped configs and overrides: how a study is run.

    Raises:
        ConfigError: The overrides have a mistake; the message is one line.
    """
    try:
        tree: DictConfig = _composed(overrides, None, return_hydra_config=True).hydra
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error) from error
    return tree


def _composed(overrides: Sequence[str], folder: Path | None, **options: bool) -> DictConfig:
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(folder or config_dir())):
        # The shipped config asks the running Hydra application for its folder, and none is running here.
        default = f"output_dir={ExperimentConfig.output_dir}"
        return compose("config", overrides=[default, *hydra_overrides(overrides, folder)], **options)


def hydra_overrides(overrides: Sequence[str], folder: Path | None = None) -> list[str]:
    """The overrides in a form that Hydra's grammar accepts.

    `experiment=null`, which is the default, is dropped. A text outside the grammar (Cyrillic letters, parentheses, a
    second `=`) is quoted as a whole: `data.train_file=мои данные.jsonl`. So is a text that Hydra would take for a
    number and write in another way: `study=1e5`.

    Args:
        overrides: They may also be the arguments of a Hydra application, with options.
        folder: The folder of configs, if not the shipped one.

    Raises:
        ConfigError: An override cannot be read, contains the secret key of a judge, or gives an address for a judge
            that may be another one.
    """
    for override in overrides:
        refuse_secret(override)
    refuse_shared_address(overrides, [folder or config_dir(), *_further_folders(overrides)])
    for override in overrides:
        # A metric of the user's own: its file is enough for `metrics=NAME` to choose it.
        if own := re.match(r"\+*metrics\.(\w+)\.file=", override):
            _store_metric(own[1])
    return [_added(_quoted(override)) for override in overrides if override.strip() != "experiment=null"]


def _further_folders(arguments: Sequence[str]) -> list[Path]:
    """The folder of Hydra's option `--config-dir`."""
    text = "\0".join(arguments)
    return [Path(given) for given in re.findall(r"(?:^|\0)(?:--config-dir|-cd)[=\0]([^\0]+)", text)]


def _added(override: str) -> str:
    """The override as an addition, if it gives a dictionary keys of its own, which Hydra refuses otherwise."""
    key = override.partition("=")[0]
    return (
        f"++{override}"
        if any((key == name and name not in GROUPS) or key.startswith(f"{name}.") for name in _dictionary_keys())
        else override
    )


@functools.cache
def _dictionary_keys() -> frozenset[str]:
    return frozenset(key for key, kind in _types(ExperimentConfig) if kind == dict[str, Any])


def _quoted(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or override.startswith("-"):
        return override
    try:
        [parsed] = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        if re.match(r"[\[{'\"]|\w+\(", value):
            # A list, a mapping or a function with a mistake in it: only the user knows which.
            raise ConfigError(
                f"cannot read {override}: put text with special characters in quotes, as in 'text'"
            ) from error
        return f"{key}={_in_quotes(value)}"
    is_number = isinstance(number := parsed.value(), int | float) and str(number) != value
    return f"{key}={_in_quotes(value)}" if is_number and parsed.key_or_group in text_keys() else override


@functools.cache
def text_keys() -> frozenset[str]:
    """Keys whose value is a text."""
    texts = (key for key, kind in _types(ExperimentConfig) if kind in (str, str | None))
    return frozenset({"hydra.sweeper.study_name", "data.train_file", *texts})


def _types(schema: Any) -> Iterator[tuple[str, Any]]:
    """Each key that is not a group, and the type of its value."""
    for name, kind in type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from ((f"{name}.{key}", inner) for key, inner in _types(kind))
        else:
            yield name, kind


def _in_quotes(text: str) -> str:
    """The text in Hydra's quotes, in which a backslash is an escape only before quotes."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + (r"\'" if match[2] else ""), text)
    return f"'{escaped}'"


def literal(text: str) -> str:
    """The text as the value of an override, quoted so that it is taken literally."""
    return _in_quotes(_not_interpolated(text))


def _not_interpolated(text: str) -> str:
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def to_config(tree: DictConfig) -> ExperimentConfig:
    """Turn a composed tree into the typed config and check every value.

    Raises:
        ConfigError: An unknown key, a wrong type, a missing value or an impossible combination.
    """
    try:
        merged = OmegaConf.merge(_schema(), tree)
        if not isinstance(merged, DictConfig):
            raise TypeError(f"a {type(merged).__name__} instead of a config")
        settle_judges(merged, config_dir() / "judge")
        _refuse_unknown_keys(merged, ExperimentConfig(), "")
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise ConfigError(f"{key} has no value: set {key}=…")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    if not isinstance(config, ExperimentConfig):
        raise ConfigError("the composed config is not an experiment: is `base_config` in its defaults list?")
    return config


@functools.cache
def _schema() -> DictConfig:
    """The schema as OmegaConf sees it; cached, because it takes a seventh of the time of a composition."""
    schema: DictConfig = OmegaConf.structured(ExperimentConfig)
    return schema


def restored_config(values: Mapping[str, Any], changes: Sequence[str] = ()) -> ExperimentConfig:
    """The typed config from values that were resolved and recorded; nothing in them is interpolated again.

    Args:
        values: Nested, as `dataclasses.asdict` gives them.
        changes: Keys that get another value, as `key=value` with the value in YAML.

    Raises:
        ConfigError: A change cannot be read, or the config is not valid (as for `to_config`).
    """
    for change in changes:
        if "=" not in change:
            raise ConfigError(f"cannot read {change}: write KEY=VALUE")
    plain = _plain(values)
    for key, value in UNRECORDED.items():
        group, name = key.split(".")
        if isinstance(plain.get(group), dict):
            plain[group].setdefault(name, value)
    try:
        tree = OmegaConf.merge(OmegaConf.create(plain), OmegaConf.from_dotlist(list(changes)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot read {' '.join(changes)}: write KEY=VALUE") from error
    if not isinstance(tree, DictConfig):
        raise TypeError(f"a {type(tree).__name__} instead of a config")
    return to_config(tree)


def _plain(value: Any) -> Any:
    """The value, with texts escaped that OmegaConf would interpolate."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return _not_interpolated(value) if isinstance(value, str) else value


def _refuse_unknown_keys(tree: Any, default: Any, prefix: str) -> None:
    """Refuse keys that `+key=value` slipped past Hydra's own check."""
    for key in tree:
        value = getattr(default, str(key), None)
        if not hasattr(default, str(key)):
            raise _unknown_key(f"{prefix}{key}")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(tree[key], value, f"{prefix}{key}.")


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """The config as `{"lora.r": 16, …}`, in the order of the schema."""
    return dict(_flat("", dataclasses.asdict(config)))


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved config as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def explain(error: BaseException) -> LorahydraError:
    """One line that says which mistake Hydra or OmegaConf found, taken out of all wrapping errors."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, LorahydraError):
            return cause
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return _unknown_choice(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _bad_value(cause)
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return ConfigError(f"cannot read {ambiguous[1]}: put a text with commas in quotes, or search its parts with -m")
    if alone := re.match(r"Error when parsing index: \d+, string: (.*) out of \[", str(error)):
        return ConfigError(f"cannot read '{alone[1]}': write KEY=VALUE, such as lora.r=8, or GROUP=CHOICE")
    return ConfigError(_first_sentence(str(error)))


def _unknown_choice(error: MissingConfigException) -> ConfigError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(option for option in error.options or () if option != "__init__")
    if group == "judge":
        return JudgeNotFoundError(name, registered_judges())
    if group == "metrics":
        return unknown_metric(name)
    if group == "hydra/launcher" and name in LAUNCHERS:
        return ConfigError(f"{group}={name} needs a package: pip install 'lorahydra[{LAUNCHERS[name]}]'")
    if not group:
        return ConfigError(f"config '{name}' does not exist in {config_dir()}")
    return ConfigError(
        f"{group}={name} does not exist: choose one of {', '.join(options)}{did_you_mean(name, options)}"
    )


def _bad_value(error: OmegaConfBaseException) -> ConfigError:
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key} has no value: set {key}=…")
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(key)
    if key == "judge.api_key_env":
        return ConfigError(NOT_A_NAME)  # the value may be a key
    if isinstance(error, ValidationError) and (kind := dict(_types(ExperimentConfig)).get(key)) is not None:
        return wrong_type(key, error.value, kind)
    if isinstance(error, ValidationError) and "is not a ListConfig" in str(error):
        return ConfigError(f"{key}={error.value} is not allowed: give a list, as in [{error.value}]")
    return ConfigError(f"{key}: {_first_sentence(str(error))}")


def _unknown_key(key: str) -> ConfigError:
    parent, _, name = key.rpartition(".")
    node: Any = ExperimentConfig()
    for part in parent.split(".") if parent else ():
        node = getattr(node, part, None)
    if not dataclasses.is_dataclass(node):
        return ConfigError(f"unknown key {key}")
    allowed = [field.name for field in dataclasses.fields(node)]
    where = f"{parent} has" if parent else "the config has"
    return ConfigError(f"unknown key {key}{did_you_mean(name, allowed)}: {where} {', '.join(allowed)}")


def _first_sentence(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "the config cannot be composed"
    return re.sub(r"\.$", "", first)
