"""The session that trials of a process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.judges.wire import MODEL, JudgeServer
from tests.support.configs import composed, judge_config

from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import JudgeSetupError
from lorahydra.judges import JudgeCase, loading, start_judging
from lorahydra.judges.loading import load_session, ready_session

pytestmark = [pytest.mark.service]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    loading.close_session()


def config(server: JudgeServer, *overrides: str) -> JudgeConfig:
    return judge_config("openai", f"judge.model={MODEL}", *overrides, base_url=server.openai)


def test_no_judge_no_session() -> None:
    assert load_session(JudgeConfig()) is None


def test_the_same_settings_share_a_session(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_session(config(server))
    assert load_session(config(server)) is first
    assert load_session(config(server, "judge.n_examples=all", "judge.finalists=2")) is first, "the same money"
    other = load_session(config(server, "judge.concurrency=2"))
    assert other is not first
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    assert load_session(config(server, "judge.concurrency=2")) is not other, "a corrected key counts at once"


def test_a_judge_that_cannot_be_made_leaves_the_last_one_alone(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_session(config(server))
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(JudgeSetupError, match="needs a key"):
        load_session(judge_config("gemini"))
    assert load_session(config(server)) is first
    assert first is not None
    assert start_judging(first, [JudgeCase("q", "r", "a")]).wait().coverage == 1


def test_a_key_that_goes_to_another_service_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    def warned(*overrides: str) -> bool:
        caplog.clear()
        ready_session(judge_config("openai", "judge.self_test=false", *overrides))
        return "The key in OPENAI_API_KEY is sent to h.example" in caplog.text

    elsewhere = "judge.base_url=https://h.example/v1"
    assert warned(elsewhere)
    assert not warned(elsewhere, "judge.api_key_env=MINE")
    assert not warned("judge.base_url=http://127.0.0.1:9/v1")
    assert not warned()
    keys = ("judges.gemini.api_key_env=OPENAI_API_KEY", "judges.openai.base_url=https://h.example/v1")
    ready_session(composed("judge=panel", "judge.judges=[gemini,openai]", "judge.self_test=false", *keys).judge)
    assert "or judges.openai.api_key_env=null for none" in caplog.text
