"""What can be chosen on this server, judges and base models, and what each of them lacks."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorahydra.config.addresses import ADDRESSES
from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig, ServiceConfig
from lorahydra.config.judge_registry import (
    PANEL,
    choosable_judges,
    install_command,
    is_built_in,
    judge_factory,
    registered_judges,
    sdk_package,
    sdk_version,
)
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import ConfigError, JudgeNotFoundError, LorahydraError
from lorahydra.modeling.packaged import PACKAGED, ModelKind, packaged_path
from lorahydra.service.errors import ConflictError, InvalidError, Message
from lorahydra.service.views import JudgeView, ModelView

__all__ = ["LOCAL", "MODEL_NAME", "Choices", "composed", "without"]

MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?$"
"""Form of `base_model_name`: it has room for nothing of a path or of Hydra's grammar."""
MOST_FOLDERS = 100
OWN = frozenset(field.name for field in dataclasses.fields(ServiceConfig))
LOCAL = "local"
"""The judge that is a model on this machine."""

_compose = functools.lru_cache(maxsize=256)(compose)
_composing = threading.Lock()


def composed(overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment that overrides describe; treat it as read-only.

    Raises:
        ConfigError: They are not valid.
    """
    with _composing:  # Hydra keeps what it composes in globals
        # How a study is run is not part of its config.
        return _compose(tuple(override for override in overrides if not override.startswith(("hydra.", "hydra/"))))


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides except those of some keys."""
    return [override for override in overrides if override.partition("=")[0] not in keys]


class Choices:
    """Judges and base models of one server.

    Args:
        models_folder: Its subfolders can be chosen as base models.
        overrides: Hydra overrides of every fine-tune, which may set a judge's address or key.

    Raises:
        ConfigError: The overrides have an address or a key variable without saying for which judge.
    """

    def __init__(self, models_folder: Path, overrides: Sequence[str]) -> None:
        self.overrides = tuple(overrides)
        self.runs_elsewhere = False
        """Whether trials may run on other machines than this one."""
        self._models = models_folder
        self._owners = _owners(self.overrides)

    def judge_config(self, name: str) -> JudgeConfig:
        """A judge's settings on this server."""
        if name not in choosable_judges():
            raise InvalidError(str(JudgeNotFoundError(name, registered_judges())), "judge_not_found")
        config = composed((f"judge={name}", *self.overrides_with(name))).judge
        return replace(config, model=self.place(config.model)) if name == LOCAL and config.model else config

    def overrides_with(self, judge: str | None) -> list[str]:
        """The server's overrides without their choice of a judge, and without the settings of another one."""
        kept = without(self.overrides, "judge", *(() if judge == PANEL else ("judge.judges",)))
        return kept if self._owners is None or judge in self._owners else [one for one in kept if not _is_own(one)]

    def judges(self) -> list[JudgeView]:
        """All judges, by name."""
        default = self.default_judge()
        return [self._judge(name, name == default) for name in choosable_judges()]

    def default_judge(self) -> str:
        """The judge that the server's overrides name, else the first service by name that is set up, else the first."""
        named = [override.partition("=")[2] for override in self.overrides if override.startswith("judge=")]
        if named and named[-1] in choosable_judges():
            return named[-1]
        services = [name for name in registered_judges() if self._calls_service(name)]
        return next((name for name in services if self.missing(name) is None), [*services, *registered_judges()][0])

    def missing(self, name: str) -> str | None:
        """What the judge lacks before it can be called from here, in one line; None if nothing."""
        judges = self.judge_config(name).asked.values()
        return next(filter(None, map(_missing, judges)), None)

    def require_judge(self, name: str | None) -> None:
        """Refuse a judge that is not set up here; None stands for scoring without a judge."""
        missing = None if name is None else self.missing(name)
        if isinstance(missing, Message):
            hint = f"{missing}; or start with use_llm_judge false"
            missing = Message(hint, missing.code, **missing.values)
        if missing is not None:
            raise ConflictError(missing, "judge_not_configured")

    def _calls_service(self, name: str) -> bool:
        with suppress(LorahydraError):  # the server's overrides are not valid with this judge
            return is_built_in(name) and bool(self.judge_config(name).key_names)
        return False

    def _judge(self, name: str, is_default: bool) -> JudgeView:
        try:
            config, missing = self.judge_config(name), self.missing(name)
        except LorahydraError as error:
            return JudgeView(name, "-", False, str(error), is_default, None, None)
        return JudgeView(
            id=name,
            model=" + ".join(one.model or "-" for one in config.asked.values()),
            is_configured=missing is None,
            missing=missing,
            is_default=is_default,
            prompt_price=config.prices[0] or None,
            completion_price=config.prices[1] or None,
        )

    def default_model(self) -> str:
        """The base model of a request that names none."""
        return composed(self.overrides).model.name_or_path

    def models(self) -> list[ModelView]:
        """Packaged models, those in the models folder, and the default one."""
        default = self.default_model()
        names = [name for name, model in PACKAGED.items() if model.kind is ModelKind.CAUSAL_LM] + self._folders()
        if default not in names and _is_model_name(default):
            names.insert(0, default)
        return [self._model(name, default) for name in dict.fromkeys(names)]

    def in_place_of_the_default(self) -> str | None:
        """A model that can be used at once; None if the default one can be, or none is on this machine."""
        models = self.models()
        if not any(model.is_default and not model.is_available for model in models):
            return None
        return next((model.name for model in models if model.is_available), None)

    def model_path(self, name: str) -> str:
        """The value of `model.name_or_path` for a base model; refuses those that cannot be used."""
        if not _is_model_name(name):
            raise InvalidError(
                f"base_model_name {name[:100]!r} is not a model: give a packaged one, a folder of the server's models "
                "folder, or a hub id such as Qwen/Qwen3-0.6B"
            )
        if name in PACKAGED:
            if PACKAGED[name].kind is not ModelKind.CAUSAL_LM:
                raise InvalidError(f"base_model_name {name} is an encoder, which cannot answer")
            if packaged_path(name) is None:
                raise ConflictError(_to_fetch(name), "model_not_fetched")
            return name
        return self.place(name)

    def place(self, name: str) -> str:
        """Where a base or judge model is: the folder of this name in the models folder, else what the name says."""
        folder = None if name in PACKAGED or not _is_model_name(name) else self._folder(name)
        return name if folder is None else str(folder)

    def is_here(self, name: str) -> bool:
        """Whether the files of a base model are on this machine."""
        return self._model(name, "").is_available or Path(name).expanduser().exists()

    def _model(self, name: str, default: str) -> ModelView:
        kind, missing = "folder", ""
        if name in PACKAGED:
            kind, missing = "packaged", "" if packaged_path(name) is not None else _to_fetch(name)
        elif self._folder(name) is None:
            kind = "hub"
            missing = "" if _is_in_hub_cache(name) else f"{name} is fetched from the hub when it is first used"
        return ModelView(name, kind, not missing, missing or None, name == default)

    def _folders(self) -> list[str]:
        """Names of the models in the models folder, one or two levels deep."""
        try:
            files = [*self._models.glob("*/config.json"), *self._models.glob("*/*/config.json")]
        except OSError:
            return []
        names = sorted({file.parent.relative_to(self._models).as_posix() for file in files})
        return [name for name in names if _is_model_name(name) and self._folder(name) is not None][:MOST_FOLDERS]

    def _folder(self, name: str) -> Path | None:
        """The folder that a name stands for; a link that leads out of the models folder stands for nothing."""
        root = self._models.resolve()
        folder = (root / name).resolve()
        return folder if folder.is_dir() and folder.is_relative_to(root) and folder != root else None


def _is_own(override: str) -> bool:
    """Whether an override sets what each judge has of its own, such as its address."""
    group, _, rest = override.partition("=")[0].lstrip("+~").partition(".")
    return group == "judge" and rest.partition(".")[0] in OWN


def _owners(overrides: Sequence[str]) -> set[str] | None:
    """The judges that the server's `judge.…` settings are for; None for all.

    They are for the judge that is named beside them. If none is named, an address is only for the judges that can be
    meant by it: those that have a key, and those that need none there. A key must not reach the address of another
    service.
    """
    named = [override.partition("=")[2] for override in overrides if override.startswith("judge=")]
    if named:
        return {named[-1]}
    own = [override.partition("=")[0] for override in overrides if _is_own(override)]
    where = [key for key in own if key.partition(".")[2] in ADDRESSES]
    if not where:
        return None
    alone = {name: composed((f"judge={name}",)).judge for name in registered_judges() if is_built_in(name)}
    keys = {name: tuple(config.key_names) for name, config in alone.items() if _has_key(config)}
    free = {name for name, config in alone.items() if config.key_names and not _needs_key(name, overrides)}
    if len({*keys.values()}) + bool(free - keys.keys()) > 1:
        raise ConfigError(
            f"{where[0]} does not say for which judge it is, and there are keys of {', '.join(keys)}, which must not "
            f"go to another service: give judges.NAME.{where[0].partition('.')[2]} instead"
        )
    return {*keys, *free}


def _has_key(config: JudgeConfig) -> bool:
    with suppress(LorahydraError):  # the variable holds something else
        return config.api_key() is not None
    return True


def _needs_key(name: str, overrides: Sequence[str]) -> bool:
    factory: Any = judge_factory(name)
    return bool(factory.needs_key(composed((f"judge={name}", *overrides)).judge))


def _missing(config: JudgeConfig) -> str | None:
    """What one judge lacks before it can be called from here, in one line; None if nothing."""
    name = config.name
    if sdk_package(name) is not None and sdk_version(name) is None:
        command = install_command(name)
        return Message(f"judge {name} needs its SDK: {command}", "sdk", judge=name, command=command)
    if name == LOCAL and config.model and not _is_here(config.model):
        text = f"judge {name} needs its model: {config.model} is neither in the models folder nor fetched"
        return Message(text, "judge_model", judge=name, model=config.model)
    try:
        if not config.key_names or config.api_key() is not None:
            return None
    except LorahydraError as error:
        return str(error)
    judge: Any = judge_factory(name) if is_built_in(name) else None
    if judge is not None and not judge.needs_key(config):
        return None
    text = f"judge {name} needs a key: put it into the environment variable {' or '.join(config.key_names)}"
    return Message(text, "key", judge=name, variables=" / ".join(config.key_names))


def _is_model_name(text: str) -> bool:
    """Whether the text has the form of `MODEL_NAME`, with no line end behind it."""
    return re.fullmatch(MODEL_NAME[1:-1], text) is not None


def _to_fetch(name: str) -> Message:
    command = f"lorahydra models fetch {name}"
    return Message(f"{name} is not on this machine yet: run `{command}`", "fetch", model=name, command=command)


def _is_here(model: str) -> bool:
    """Whether a model is on this machine: a packaged one, a folder, a GGUF file, or one in the hub's cache."""
    if model in PACKAGED:
        return packaged_path(model) is not None
    place = Path(model).expanduser()
    return place.is_dir() or place.is_file() or _is_in_hub_cache(model)


def _is_in_hub_cache(name: str) -> bool:
    """Whether the hub's cache has the model's config; the hub is not called."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # the hub does not allow such a name
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    return False
