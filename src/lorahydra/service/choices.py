"""What can be chosen on this server: judges and base models, and what each one lacks."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import registered_judges
from lorahydra.errors import JudgeNotFoundError, LorahydraError
from lorahydra.modeling.packaged import PACKAGED, ModelKind, packaged_path
from lorahydra.service.composing import composed
from lorahydra.service.errors import ConflictError, InvalidError
from lorahydra.service.views import JudgeView, ModelView

__all__ = ["MODEL_NAME", "Choices", "without"]

MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?$"
"""What `base_model_name` may be: nothing of a path or of Hydra's grammar is in it."""
PREFERRED = ("gemini", "gigachat", "openai")
"""Judges that are tried in this order where a request names none."""
SDKS = {
    "gemini": ("google.genai", "gemini"),
    "gemini_legacy": ("google.generativeai", "gemini-legacy"),
    "gigachat": ("gigachat", "gigachat"),
    "openai": ("openai", "openai"),
}
"""Module of each judge's SDK, and the extra that installs it."""


class Choices:
    """Judges and base models of one server.

    Args:
        models_folder: Its folders may be named as base models.
        overrides: Those of every job, which may set a judge's address or key.
    """

    def __init__(self, models_folder: Path, overrides: Sequence[str]) -> None:
        self._models = models_folder
        self._overrides = tuple(overrides)

    def judge_config(self, name: str) -> JudgeConfig:
        """A judge's settings here.

        Raises:
            InvalidError: There is none of this name.
        """
        if name not in registered_judges():
            raise InvalidError(str(JudgeNotFoundError(name, registered_judges())), "judge_not_found")
        return composed((f"judge={name}", *without(self._overrides, "judge"))).judge

    def judges(self) -> list[JudgeView]:
        """All judges, by name."""
        default = self.default_judge()
        return [self._judge(name, name == default) for name in registered_judges()]

    def default_judge(self) -> str:
        """The server's own choice; else the first of the preferred judges that is set up, or the first one."""
        own = [override.partition("=")[2] for override in self._overrides if override.startswith("judge=")]
        if own and own[-1] in registered_judges():
            return own[-1]
        return next((name for name in PREFERRED if self.missing(name) is None), PREFERRED[0])

    def missing(self, name: str) -> str | None:
        """What the judge lacks to be asked from here, in one line."""
        config = self.judge_config(name)
        module, extra = SDKS.get(name, (None, None))
        if module is not None and not _is_installed(module):
            return f"judge {name} needs its SDK: pip install 'lorahydra[{extra}]'"
        try:
            # An OpenAI-compatible server of one's own may need no key.
            needs_key = bool(config.key_names) and not (name == "openai" and config.base_url)
            _ = config.require_api_key() if needs_key else config.api_key()
        except LorahydraError as error:
            return str(error)
        return None

    def require_judge(self, name: str) -> None:
        """Check that a judge can be asked.

        Raises:
            InvalidError: There is none of this name.
            ConflictError: It is not set up here.
        """
        if (missing := self.missing(name)) is not None:
            hint = "" if name not in PREFERRED else "; or start with use_llm_judge false"
            raise ConflictError(f"{missing}{hint}", "judge_not_configured")

    def _judge(self, name: str, is_default: bool) -> JudgeView:
        try:
            config, missing = self.judge_config(name), self.missing(name)
        except LorahydraError as error:  # one whose settings the server's own overrides make impossible
            return JudgeView(name, "-", False, str(error), is_default, None, None)
        return JudgeView(
            id=name,
            model=config.model or "-",
            is_configured=missing is None,
            missing=missing,
            is_default=is_default,
            prompt_price=config.prompt_price or None,
            completion_price=config.completion_price or None,
        )

    def default_model(self) -> str:
        """The base model of a request that names none."""
        return composed(self._overrides).model.name_or_path

    def models(self) -> list[ModelView]:
        """Packaged models, those in the models folder, and the default one."""
        default = self.default_model()
        packaged = [name for name, model in PACKAGED.items() if model.kind is ModelKind.CAUSAL_LM]
        found = [self._model(name, default) for name in [*packaged, *self._folders()]]
        if default not in {model.name for model in found} and _is_model_name(default):
            found.insert(0, self._model(default, default))
        return found

    def model_path(self, name: str) -> str:
        """The value of `model.name_or_path` for a base model.

        Raises:
            InvalidError: It is no name of a model.
            ConflictError: It is a packaged model that is not fetched yet.
        """
        if not _is_model_name(name):
            raise InvalidError(
                f"base_model_name {name[:100]!r} is no model: give a packaged one, a folder of the server's models "
                "folder, or a hub id such as Qwen/Qwen3-0.6B"
            )
        if name in PACKAGED:
            if PACKAGED[name].kind is not ModelKind.CAUSAL_LM:
                raise InvalidError(f"base_model_name {name} is an encoder, which answers nothing")
            if packaged_path(name) is None:
                raise ConflictError(_to_fetch(name), "model_not_fetched")
            return name
        folder = self._folder(name)
        return name if folder is None else str(folder)

    def _model(self, name: str, default: str) -> ModelView:
        if name in PACKAGED:
            missing = None if packaged_path(name) is not None else _to_fetch(name)
            return ModelView(name, "packaged", missing is None, missing, name == default)
        if self._folder(name) is not None:
            return ModelView(name, "folder", True, None, name == default)
        cached = _hub_cached(name)
        hint = None if cached else f"{name} comes from the hub when it is first used"
        return ModelView(name, "hub", cached, hint, name == default)

    def _folders(self) -> list[str]:
        """Names of the models in the models folder, one or two levels deep."""
        try:
            files = [*self._models.glob("*/config.json"), *self._models.glob("*/*/config.json")]
        except OSError:
            return []
        names = sorted({file.parent.relative_to(self._models).as_posix() for file in files})
        return [name for name in names if _is_model_name(name) and self._folder(name) is not None][:100]

    def _folder(self, name: str) -> Path | None:
        """The folder that a name means; a link that leads out of the models folder means nothing."""
        root = self._models.resolve()
        folder = (root / name).resolve()
        return folder if folder.is_dir() and folder.is_relative_to(root) and folder != root else None


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """The overrides but for those of some keys."""
    return [override for override in overrides if override.partition("=")[0] not in keys]


def _is_model_name(text: str) -> bool:
    """Whether it is of the form of `MODEL_NAME`, without a line end behind it."""
    return re.fullmatch(MODEL_NAME[1:-1], text) is not None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _to_fetch(name: str) -> str:
    return f"{name} is not on this machine yet: run `lorahydra models fetch {name}`"


def _hub_cached(name: str) -> bool:
    """Whether the hub's cache has something of it; nothing is asked for."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")).expanduser()
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json"))
