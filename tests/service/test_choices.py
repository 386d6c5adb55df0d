"""Judges and base models that can be chosen on a server, and what the server's overrides change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lorahydra.errors import ConfigError
from lorahydra.service.choices import Choices, composed
from lorahydra.service.database import Job
from lorahydra.service.launching import launch_overrides
from lorahydra.service.planning import Data, demo_data, estimate, overrides_of, settled
from lorahydra.service.views import FineTuneParams


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GIGACHAT_CREDENTIALS", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_the_default_judge_is_the_first_service_that_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = Choices(tmp_path, ())
    assert choices.default_judge() == "gemini"
    assert "GEMINI_API_KEY or GOOGLE_API_KEY" in str(choices.missing("gemini"))
    assert "judge local needs its model: Qwen/" in str(choices.missing("local"))
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
    data = Data(tmp_path / "rows.csv", {"train": 1}, 1, columns, overlong="drop")
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
    monkeypatch.delenv("OPENAI_API_KEY")  # which a server at that address does not need
    with pytest.raises(ConfigError, match="there are keys of gemini, gemini_legacy, which must not go"):
        Choices(tmp_path, (f"judge.base_url={address}",))
    own = Choices(tmp_path, ("judge.api_key_env=GEMINI_API_KEY",))
    assert own.judge_config("gemini").key_names == ["GEMINI_API_KEY"]
    assert own.judge_config("openai").key_names == ["OPENAI_API_KEY"]
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    only = Choices(tmp_path, (f"judge.base_url={address}",))
    assert only.judge_config("openai").base_url == address
    assert only.judge_config("gemini").base_url is None


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


def test_what_is_listed_is_used(models: Path, tmp_path: Path) -> None:
    for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B-Instruct-2507"):  # the default model, and that of judge=local
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    for server in ((), ("model=qwen3_0_6b",), ("model.name_or_path=Qwen/Qwen3-0.6B", "model.revision=main")):
        choices = Choices(tmp_path, (*server, "training.max_steps=2"))
        [listed] = [model for model in choices.models() if model.is_default]
        assert (listed.name, listed.kind, listed.is_available) == ("Qwen/Qwen3-0.6B", "folder", True)
        for named in (None, "Qwen/Qwen3-0.6B"):
            asked = settled(FineTuneParams(True, "local", named, 5), choices)
            config = composed(overrides_of(asked, choices, demo_data()))
            assert config.model.name_or_path == str(tmp_path / "Qwen/Qwen3-0.6B")
            assert config.model.revision is None
            assert config.judge.model == str(tmp_path / "Qwen/Qwen3-4B-Instruct-2507")
            assert config.training.max_steps == 2


def test_a_judge_on_this_machine_takes_time_and_no_money(models: Path, tmp_path: Path) -> None:
    choices = Choices(models, ("judge.model=tiny",))
    assert choices.missing("local") is None
    alone, judged = (
        estimate(settled(FineTuneParams(with_judge, "local", "tiny", 5), choices), choices, demo_data(), None)
        for with_judge in (False, True)
    )
    assert alone.seconds is not None
    assert judged.seconds is not None
    assert judged.seconds > alone.seconds
    assert (judged.judge_cost, judged.judge_calls > 0) == (0, True)


def test_answers_with_examples_in_the_prompt_are_judged_as_well(models: Path) -> None:
    def calls(*overrides: str) -> int:
        given = ("judge.model=tiny", "judge.n_examples=3", "judge.test_examples=4", *overrides)
        choices = Choices(models, given)
        return estimate(
            settled(FineTuneParams(True, "local", "tiny", 5), choices), choices, demo_data(), None
        ).judge_calls

    assert calls("evaluation.few_shot=2") == calls() + 3 + 4


def test_what_does_not_change_scores_is_as_the_server_is_now(models: Path) -> None:
    before = ("judges.openai.base_url=http://127.0.0.1:1/v1", "judge.timeout=9", "training.max_steps=2")
    asked = FineTuneParams(True, "openai", "tiny", 5)
    params = dataclasses.asdict(asked)
    data = Data(Path("/data/3.jsonl"), {"train": 1}, 1, overlong="drop")
    begun = overrides_of(asked, Choices(models, (*before, "hydra.sweeper.n_jobs=2")), data)
    job = Job(id=7, name="Sue's, {a: b} ${x}", params=params, overrides=begun)
    now = Choices(models, ("judge=openai", "judge.base_url=http://127.0.0.1:2/v1", "training.max_steps=9"))
    overrides = launch_overrides(job, "rows, new.jsonl", now)
    assert not [override for override in overrides if override.startswith(("judge.timeout", "hydra.sweeper.n_jobs"))]
    config = composed(overrides)
    assert (config.judge.base_url, config.training.max_steps) == ("http://127.0.0.1:2/v1", 2)
    assert (config.data.train_file, config.data.overlong) == ("/data/3.jsonl", "drop")
    assert config.tracking.tags == {"lorahydra.fine_tune": job.name, "lorahydra.data_file": "rows, new.jsonl"}
