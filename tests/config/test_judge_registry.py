"""Judges by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

import lorahydra
from lorahydra.config import judge_registry
from lorahydra.config.compose import compose
from lorahydra.config.judge import JudgeConfig
from lorahydra.config.judge_registry import JUDGES
from lorahydra.errors import ConfigError, JudgeNotFoundError
from lorahydra.judges import Judge, JudgePrompt, JudgeReply, get_model_by_id, make_judge

MESSAGE = "LLM judge model not found: 'foo'. Registered: gemini, gemini_legacy, gigachat, local, openai."


class Mine(Judge):
    model = "mine-1"

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        return JudgeReply("{}", self.model)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    judge_registry.unregister_judge("foo")


def test_an_unknown_judge_is_named_with_the_known_ones() -> None:
    for call in (
        lambda: lorahydra.get_model_by_id("foo"),
        lambda: compose(["judge=foo"]),
        lambda: JudgeConfig(name="foo"),
        lambda: judge_registry.judge_factory("foo"),
    ):
        with pytest.raises(JudgeNotFoundError) as caught:
            call()
        assert str(caught.value) == MESSAGE


def test_a_registered_judge_is_there_for_configs_and_from_python() -> None:
    lorahydra.register_judge("foo", Mine)
    config = compose(["judge=foo", "+judge.options.level=3"]).judge
    assert config.name == "foo"
    assert config.rubric.criteria
    judge = make_judge(config)
    assert isinstance(judge, Mine)
    assert judge.config.options == {"level": 3}
    assert isinstance(get_model_by_id("foo"), Mine)


def test_an_installed_package_adds_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("foo", f"{__name__}:Mine", JUDGES.group)
    monkeypatch.setattr(JUDGES, "_entries", {"foo": SimpleNamespace(load=lambda: Mine, value=entry.value)})
    assert "foo" in judge_registry.registered_judges()
    assert isinstance(get_model_by_id("foo"), Mine)


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("foo", "no_such_module:Judge", JUDGES.group)
    monkeypatch.setattr(JUDGES, "_entries", {"foo": entry})
    with pytest.raises(ConfigError, match=r"judge foo \(no_such_module:Judge\) cannot be imported"):
        get_model_by_id("foo")


def test_what_is_no_judge_is_refused() -> None:
    lorahydra.register_judge("foo", lambda config: object())
    with pytest.raises(ConfigError, match="its factory made a object, which lacks a part"):
        get_model_by_id("foo")


@pytest.mark.parametrize("name", ["", "none", "a b", "x=1", "../x", "судья"])
def test_names_that_configs_could_not_say(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a judge"):
        lorahydra.register_judge(name, Mine)


def test_only_the_sdk_in_use_is_imported() -> None:
    code = (
        "import sys; from lorahydra.config.compose import compose; from lorahydra.judges import make_judge;"
        "make_judge(compose(['judge=openai', 'judge.base_url=http://127.0.0.1:9/v1']).judge);"
        "print([name for name in ('google.genai', 'google.generativeai', 'gigachat', 'openai', 'torch')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['openai']"
