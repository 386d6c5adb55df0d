"""Settings of one judge only, and the members of a panel."""

from __future__ import annotations

import dataclasses

import pytest

from lorahydra.config.changes import JUDGE_NEUTRAL_KEYS, SCORE_NEUTRAL_KEYS, differing, may_change
from lorahydra.config.compose import compose, restored_config
from lorahydra.config.judge import refuse_secret
from lorahydra.errors import ConfigError

ADDRESS = "http://127.0.0.1:8000/v1"


def test_settings_reach_only_their_judge() -> None:
    own = [f"judges.openai.base_url={ADDRESS}", "judges.openai.api_key_env=MINE"]
    openai = compose(["judge=openai", "judge.timeout=5", *own])
    assert (openai.judge.base_url, openai.judge.key_names, openai.judge.timeout) == (ADDRESS, ["MINE"], 5)
    gemini = compose(["judge=gemini", "judges.gemini.options.thinking_budget=7", *own]).judge
    assert (gemini.base_url, gemini.key_names[0], gemini.options) == (None, "GEMINI_API_KEY", {"thinking_budget": 7})
    assert compose(["judge=none", *own]) == compose(["judge=none"]), "nothing is recorded of judges that are not asked"


def test_the_members_of_a_panel_have_their_files_settings() -> None:
    config = compose(["judge=panel", f"judges.openai.base_url={ADDRESS}", "judge.max_cost=3", "judge.n_examples=7"])
    asked = config.judge.asked
    assert list(asked) == ["gemini", "openai"]
    assert (asked["gemini"].model, asked["gemini"].base_url) == ("gemini-2.5-flash", None)
    assert (asked["openai"].model, asked["openai"].base_url) == ("gpt-4.1-mini", ADDRESS)
    assert asked["openai"].rubric == asked["gemini"].rubric == config.judge.rubric
    assert asked["openai"].n_examples == 7
    assert config.judge.prices == pytest.approx((0.7, 4.1))


def test_a_recorded_panel_comes_back_and_may_change_what_changes_no_verdict() -> None:
    config = compose(["judge=panel", "judges.openai.model=gpt-x"])
    assert restored_config(dataclasses.asdict(config)) == config
    moved = restored_config(dataclasses.asdict(config), [f"judges.openai.base_url={ADDRESS}"])
    assert moved.judge.members["openai"].model == "gpt-x"
    assert moved.judge.members["openai"].base_url == ADDRESS
    assert differing(config, moved, SCORE_NEUTRAL_KEYS) == []
    other = restored_config(dataclasses.asdict(config), ["judges.openai.model=gpt-y"])
    assert differing(config, other, SCORE_NEUTRAL_KEYS) == ["judge.members.openai.model"]
    assert may_change("judges.openai.concurrency", JUDGE_NEUTRAL_KEYS)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["judge=panel", "judge.judges=[gemini]"], "name at least two different judges"),
        (["judge=panel", "judge.judges=[gemini,gemini]"], "name at least two different judges"),
        (["judge=panel", "judge.judges=[gemini,panel]"], "panel cannot be a member of a panel"),
        (["judge=panel", "judge.judges=[gemini,a-b]", "judges.a-b.name=openai"], "'a-b' cannot be the name of a judge"),
        (["judge=panel", "judge.judges=[gemini,foo]"], "LLM judge model not found: 'foo'"),
        (["judge=panel", "judge.model=x"], "judge.model: each judge of a panel has its own: judges.NAME.model"),
        (["judge=panel", "judges.openai.temperature=9"], "judges.openai.temperature=9.0 is not allowed"),
        (["judge=panel", "judge.timeout=0"], "judge.timeout=0.0 is not allowed"),
        (["judge=panel", "judges.openai.concurrency=x"], "judges.openai.concurrency=x is not allowed: give a whole"),
        (["judge=openai", "judges.openai.concurrency=x"], "judges.openai.concurrency=x is not allowed: give a whole"),
        (["judge=gemini", "judge.judges=[gemini,openai]"], "judge.judges is for judge=panel"),
        (["judge=gemini", "judges.opnai.model=x"], "LLM judge model not found: 'opnai'"),
        (["judge=gemini", "judges.openai.modl=x"], "unknown key judges.openai.modl (did you mean model?)"),
        (["judge=gemini", "judges.openai.name=gemini"], "unknown key judges.openai.name"),
        (["judge=gemini,openai", f"judge.base_url={ADDRESS}"], "would hold for all of judge=gemini,openai"),
        (["judge=gemini", "judges.openai=x"], "judges.openai takes settings by name"),
        (["judge=openai", "judges.openai.api_key_env=sk-hunter2"], "takes the name of an environment variable"),
        (["judge=gemini", "judges.openai.token=hunter2"], "configs must not hold secrets"),
        (["judge=gemini", "judges.openai.base_url=https://me:hunter2@h"], "takes only an address"),
        (
            ["judge=gemini", "judges.openai={model: m, api_key: hunter2}"],
            "judge.api_key: configs must not hold secrets",
        ),
        (["judge=gemini", "judges={openai: {'api_key_env': sk-hunter2}}"], "takes the name of an environment variable"),
        (["judge=gemini", "+judge.options={top_p: 1, auth: {token: hunter2}}"], "configs must not hold secrets"),
        (["judge=gemini", "judges.openai={base_url: 'https://me:hunter2@h'}"], "takes only an address"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_looks_like_a_secret_and_is_none() -> None:
    settings = "{model: m, max_output_tokens: 9, api_key_env: [MY_KEY, OTHER], base_url: 'http://h:1/v1'}"
    assert compose(["judge=openai", f"judges.openai={settings}"]).judge.key_names == ["MY_KEY", "OTHER"]
    refuse_secret("judge.rubric.criteria.key_points.weight=2")


@pytest.mark.parametrize("judge", ["openai", "panel"])
def test_a_judge_has_options_of_its_own(judge: str) -> None:
    config = compose([f"judge={judge}", "judges.openai.options.top_p=0.5", "judges.openai.options.seed=3"]).judge
    options = config.asked["openai"].options
    assert (options["top_p"], options["seed"]) == (0.5, 3)
