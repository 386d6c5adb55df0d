"""From a name or a config to a judge that can be asked."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from urllib.parse import urlsplit

from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import NO_JUDGE, PANEL, is_built_in, judge_factory, registered_judges
from lorahydra.errors import ConfigError, JudgeNotFoundError
from lorahydra.judges.base import Judge
from lorahydra.judges.cache import VerdictCache
from lorahydra.judges.panel import PanelSession
from lorahydra.judges.selftest import ensure_usable
from lorahydra.judges.session import JudgeSession, SingleSession
from lorahydra.utils.files import data_cache_dir

__all__ = ["close_session", "get_model_by_id", "load_session", "make_judge", "make_session", "ready_session"]

logger = logging.getLogger(__name__)

OF_TRIALS = ("n_examples", "test_examples", "finalists")
"""Settings that decide only what a judge is asked about."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")

_loaded: list[tuple[object, JudgeSession]] = []
"""What the session of this process was made from, and the session; empty before there is one."""
_lock = threading.Lock()


def get_model_by_id(model_id: str) -> Judge:
    """A judge with the settings of its file in `conf/judge`, or with the defaults of `JudgeConfig` if it has no file.

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
        ConfigError: The judge does not allow a setting, or does not follow the protocol.
    """
    judge = judge_factory(config.name)(config)
    if not isinstance(judge, Judge):
        raise ConfigError(
            f"judge {config.name}: its factory made a {type(judge).__name__}, which lacks a part of "
            "lorahydra.judges.Judge (subclass it)"
        )
    return judge


def make_session(config: JudgeConfig, cache: VerdictCache | None) -> JudgeSession:
    """The judge that a config names, or the panel, with its limits and a cache; raises as `make_judge` does."""
    if config.name != PANEL:
        return SingleSession(config, make_judge(config), cache)
    judges: dict[str, Judge] = {}
    try:
        for label, member in config.asked.items():
            judges[label] = make_judge(member)
    except BaseException:
        for judge in judges.values():
            judge.close()
        raise
    return PanelSession(config, judges, cache)


def load_session(config: JudgeConfig) -> JudgeSession | None:
    """The judge with its limits and cache, or None.

    One object for the same settings, so that trials share a budget, whatever number of examples they are judged on.

    Raises:
        JudgeNotFoundError: No judge has this name.
        JudgeSetupError: Its SDK or key is missing.
        OutputError: The cache of verdicts cannot be used.
    """
    if config.name == NO_JUDGE:
        return None
    with _lock:
        asked = config.asked.values()
        keys, factories = [one.api_key() for one in asked], [judge_factory(one.name) for one in asked]
        settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in OF_TRIALS}
        source = (settings, keys, data_cache_dir(), factories)
        if _loaded and _loaded[0][0] == source:
            return _loaded[0][1]
        session = make_session(config, VerdictCache() if config.cache else None)
        close_session()
        _loaded.append((source, session))
        return session


def close_session() -> None:
    """Close the session that `load_session` keeps, if there is one."""
    while _loaded:
        _loaded.pop()[1].close()


def ready_session(config: JudgeConfig) -> JudgeSession | None:
    """The judge of `load_session` after the test of `ensure_usable` (both say what they raise); logs which it is."""
    session = load_session(config)
    if session is None:
        logger.info("LLM judge off: BERTScore only")
    else:
        logger.info("LLM judge on: %s (%s)", config.name, session.model)
        for label, one in config.asked.items():
            _warn_of_a_key_elsewhere(one, f"judges.{label}" if config.name == PANEL else "judge")
        ensure_usable(session)
    return session


@functools.cache
def _usual_key_names(name: str) -> tuple[str, ...]:
    """The variables that a built-in judge's key is in by default; each trial asks, and composing takes its time."""
    return tuple(compose([f"judge={name}"]).judge.key_names)


def _warn_of_a_key_elsewhere(config: JudgeConfig, group: str) -> None:
    """Warn if a key from the judge's usual variable, probably its own service's, is sent to another address.

    Args:
        config: The judge.
        group: Where its settings are.
    """
    host = urlsplit(config.base_url or config.auth_url or "").hostname
    if host is None or host in LOOPBACK or not is_built_in(config.name) or config.api_key() is None:
        return
    if tuple(config.key_names) == _usual_key_names(config.name):
        logger.warning(
            "The key in %s is sent to %s: if it is not for that address, name another variable with "
            "%s.api_key_env, or %s.api_key_env=null for none",
            *(" or ".join(config.key_names), host, group, group),
        )
