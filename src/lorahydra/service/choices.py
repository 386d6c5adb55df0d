"""What can be chosen on this server, judges and base models, and what each of them lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import install_command, registered_judges, sdk_package, sdk_version
from lorahydra.errors import JudgeNotFoundError, LorahydraError
from lorahydra.modeling.packaged import PACKAGED, ModelKind, packaged_path
from lorahydra.service.composing import composed, without
from lorahydra.service.errors import ConflictError, InvalidError, Message
from lorahydra.service.views import JudgeView, ModelView

__all__ = ["MODEL_NAME", "Choices"]

MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?$"
"""Form of `base_model_name`: it has room for nothing of a path or of Hydra's grammar."""
PREFERRED = ("gemini", "gigachat", "openai")
"""The first of these judges that is set up is used when a request names none."""
MOST_FOLDERS = 100


class Choices:
    """Judges and base models of one server.

    Args:
        models_folder: Its folders may be named as base models.
        overrides: Hydra overrides of every fine-tune, which may set a judge's address or key.
    """

    def __init__(self, models_folder: Path, overrides: Sequence[str]) -> None:
        self._models = models_folder
        self._overrides = tuple(overrides)

    def judge_config(self, name: str) -> JudgeConfig:
        """A judge's settings on this server.

        Raises:
            InvalidError: There is no such judge.
        """
        if name not in registered_judges():
            raise InvalidError(str(JudgeNotFoundError(name, registered_judges())), "judge_not_found")
        return composed((f"judge={name}", *without(self._overrides, "judge"))).judge

    def judges(self) -> list[JudgeView]:
        """All judges, by name."""
        default = self.default_judge()
        return [self._judge(name, name == default) for name in registered_judges()]

    def default_judge(self) -> str:
        """The judge that the server's overrides name; else the first preferred one that is set up, or the first one."""
        named = [override.partition("=")[2] for override in self._overrides if override.startswith("judge=")]
        if named and named[-1] in registered_judges():
            return named[-1]
        return next((name for name in PREFERRED if self.missing(name) is None), PREFERRED[0])

    def missing(self, name: str) -> str | None:
        """What the judge lacks before it can be called from here, in one line; None if nothing."""
        config = self.judge_config(name)
        if sdk_package(name) is not None and sdk_version(name) is None:
            command = install_command(name)
            return Message(f"judge {name} needs its SDK: {command}", "sdk", judge=name, command=command)
        try:
            # A server of one's own that is compatible with OpenAI's may need no key.
            if config.api_key() is not None or not config.key_names or (name == "openai" and config.base_url):
                return None
        except LorahydraError as error:
            return str(error)
        try:
            config.require_api_key()
        except LorahydraError as error:
            first, *others = config.key_names
            code = "key.or" if others else "key"
            return Message(str(error), code, judge=name, variable=first, other=", ".join(others))
        return None

    def require_judge(self, name: str | None) -> None:
        """Check that a judge can be called; None is no judge.

        Raises:
            InvalidError: There is no such judge.
            ConflictError: It is not set up here.
        """
        missing = None if name is None else self.missing(name)
        if isinstance(missing, Message) and name in PREFERRED:
            hint = f"{missing}; or start with use_llm_judge false"
            missing = Message(hint, missing.code, **missing.values)
        if missing is not None:
            raise ConflictError(missing, "judge_not_configured")

    def _judge(self, name: str, is_default: bool) -> JudgeView:
        try:
            config, missing = self.judge_config(name), self.missing(name)
        except LorahydraError as error:  # the server's overrides are not valid with this judge
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
        names = [name for name, model in PACKAGED.items() if model.kind is ModelKind.CAUSAL_LM] + self._folders()
        if default not in names and _is_model_name(default):
            names.insert(0, default)
        return [self._model(name, default) for name in names]

    def model_path(self, name: str) -> str:
        """The value of `model.name_or_path` for a base model.

        Raises:
            InvalidError: It is not the name of a model that answers.
            ConflictError: It is a packaged model that was not fetched yet.
        """
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
        folder = self._folder(name)
        return name if folder is None else str(folder)

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


def _is_model_name(text: str) -> bool:
    """Whether the text has the form of `MODEL_NAME`, with no line end behind it."""
    return re.fullmatch(MODEL_NAME[1:-1], text) is not None


def _to_fetch(name: str) -> Message:
    command = f"lorahydra models fetch {name}"
    return Message(f"{name} is not on this machine yet: run `{command}`", "fetch", model=name, command=command)


def _is_in_hub_cache(name: str) -> bool:
    """Whether the hub's cache has a snapshot of the model; the hub is not called."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")).expanduser()
    return any((cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json"))
