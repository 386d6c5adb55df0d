"""Judges and base models that can be chosen on a server, and what the server's overrides change."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahydra.errors import ConfigError
from lorahydra.service.choices import Choices, composed
from lorahydra.service.planning import Data, demo_data, overrides_of, settled
from lorahydra.service.views import FineTuneParams


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GIGACHAT_CREDENTIALS", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_default_judge_is_the_first_service_that_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = Choices(tmp_path, ())
    assert choices.default_judge() == "gemini"
    assert "GEMINI_API_KEY or GOOGLE_API_KEY" in str(choices.missing("gemini"))
    assert choices.missing("local") is None
    monkeypatch.setenv("GIGACHAT_CREDENTIALS", "secret")
    assert choices.default_judge() == "gigachat"
    monkeypatch.setenv("OPENAI_API_KEY", "ключ")
    assert "copy the key again" in str(choices.missing("openai"))


def test_a_server_with_openais_api_may_need_no_key(tmp_path: Path) -> None:
    choices = Choices(tmp_path, ("judge.base_url=http://127.0.0.1:8001/v1",))
    assert choices.missing("openai") is None
    assert choices.missing("gemini") is not None
    assert choices.default_judge() == "openai"


def test_what_the_server_is_set_to_is_only_a_default(models: Path) -> None:
    server = ("model=local", f"model.name_or_path={models / 'tiny'}", "judge=openai", "training.max_steps=2")
    choices = Choices(models, server)
    assert choices.default_judge() == "openai"
    assert choices.judge_config("gemini").name == "gemini"
    asked = settled(FineTuneParams(False, None, "Qwen/Qwen3-1.7B", 5), choices)
    config = composed(overrides_of(asked, choices, demo_data()))
    assert (config.model.name_or_path, config.judge.name, config.training.max_steps) == ("Qwen/Qwen3-1.7B", "none", 2)
    left_out = settled(FineTuneParams(True, None, None, 5), choices)
    config = composed(overrides_of(left_out, choices, demo_data()))
    assert (config.model.name_or_path, config.judge.name) == (str(models / "tiny"), "openai")


def test_columns_are_mapped_whatever_their_names(tmp_path: Path) -> None:
    columns = {"question": "Вопрос, с 'запятой'", "answer": 'a=${b} \\ "c"'}
    choices = Choices(tmp_path, ())
    data = Data(tmp_path / "rows.csv", {"train": 1}, 1, columns, "drop")
    config = composed(overrides_of(settled(FineTuneParams(False, None, None, 5), choices), choices, data))
    assert config.data.columns.renamed() == columns
    assert config.data.overlong == "drop"


def test_an_address_is_for_one_judge_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:8001/v1"
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a-key")
    for overrides in (
        ("judge=openai", f"judge.base_url={address}"),
        (f"judges.openai.base_url={address}",),
    ):
        choices = Choices(tmp_path, overrides)
        assert choices.judge_config("openai").base_url == address
        assert choices.judge_config("gemini").base_url is None
        asked = settled(FineTuneParams(True, "gemini", None, 5), choices)
        assert composed(overrides_of(asked, choices, demo_data())).judge.base_url is None
        panel = settled(FineTuneParams(True, "panel", None, 5), choices)
        assert composed(overrides_of(panel, choices, demo_data())).judge.members["gemini"].base_url is None
    with pytest.raises(ConfigError, match="does not say for which judge it is"):
        Choices(tmp_path, (f"judge.base_url={address}",))
    monkeypatch.delenv("OPENAI_API_KEY")
    only = Choices(tmp_path, (f"judge.base_url={address}",))
    assert only.judge_config("gemini").base_url == only.judge_config("gemini_legacy").base_url == address
    assert only.judge_config("openai").base_url is None


def test_a_panel_lacks_what_its_judges_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = Choices(tmp_path, ("judge.judges=[gemini,openai]",))
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    assert "judge openai needs a key" in str(choices.missing("panel"))
    assert choices.missing("gemini") is None
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    [panel] = [judge for judge in Choices(tmp_path, ()).judges() if judge.id == "panel"]
    assert panel.is_configured
    assert panel.model == "gemini-2.5-flash + gpt-4.1-mini"
    assert panel.prompt_price == pytest.approx(0.7)
