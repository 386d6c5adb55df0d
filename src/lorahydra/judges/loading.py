"""From a name to a judge that can be asked."""

from __future__ import annotations

import copy
import logging
import threading
from dataclasses import dataclass

from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import NO_JUDGE, judge_factory, registered_judges
from lorahydra.errors import ConfigError, JudgeNotFoundError
from lorahydra.judges.base import Judge
from lorahydra.judges.cache import VerdictCache
from lorahydra.judges.selftest import ensure_usable
from lorahydra.judges.session import JudgeSession
from lorahydra.utils.files import cache_dir

__all__ = ["get_model_by_id", "load_session", "make_judge", "ready_session"]


logger = logging.getLogger(__name__)


def get_model_by_id(model_id: str) -> Judge:
    """A judge with the settings of its file in `conf/judge`; an own one gets the defaults of `JudgeConfig`.

    Args:
        model_id: Its name, for example `gemini`.

    Raises:
        JudgeNotFoundError: No judge has this name.
        JudgeSetupError: Its SDK or key is missing.
    """
    if model_id not in registered_judges():
        raise JudgeNotFoundError(model_id, registered_judges())
    return make_judge(compose([f"judge={model_id}"]).judge)


def make_judge(config: JudgeConfig) -> Judge:
    """The judge that a config names.

    Raises:
        JudgeNotFoundError: No judge has this name.
        JudgeSetupError: Its SDK or key is missing.
        ConfigError: A setting is not possible with it, or it does not follow the protocol.
    """
    judge = judge_factory(config.name)(config)
    if not isinstance(judge, Judge):
        raise ConfigError(
            f"judge {config.name}: its factory made a {type(judge).__name__}, which lacks a part of "
            "lorahydra.judges.Judge (subclass it)"
        )
    return judge


@dataclass
class _Held:
    """The session of this process."""

    key: object = None
    session: JudgeSession | None = None


_held = _Held()
_lock = threading.Lock()


def load_session(config: JudgeConfig) -> JudgeSession | None:
    """The judge with its limits and cache; the same object for the same settings, so that trials share a budget.

    Returns:
        None without a judge.

    Raises:
        JudgeNotFoundError: No judge has this name.
        JudgeSetupError: Its SDK or key is missing.
        OutputError: The cache of verdicts cannot be used.
    """
    if config.name == NO_JUDGE:
        return None
    with _lock:
        factory = judge_factory(config.name)
        key = (copy.deepcopy(config), config.api_key(), cache_dir(), factory)
        if _held.session is None or _held.key != key:
            session = JudgeSession(config, make_judge(config), VerdictCache() if config.cache else None)
            if _held.session is not None:
                _held.session.close()
            _held.session, _held.key = session, key
        return _held.session


def ready_session(config: JudgeConfig) -> JudgeSession | None:
    """The judge of `load_session`, which has shown that it answers and can tell answers apart; says which it is.

    Raises:
        JudgeError: It is unavailable, or gives no verdicts.
        JudgeSetupError: Its key, model or certificate is refused, or its scores would mislead.
        LorahydraError: See `load_session`.
    """
    session = load_session(config)
    if session is None:
        logger.info("LLM judge off: BERTScore only")
    else:
        logger.info("LLM judge on: %s (%s)", config.name, session.judge.model)
        ensure_usable(session)
    return session
