"""The judge's part of the configuration: secrets by name, addresses, rubrics, limits."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from lorahydra.config.compose import compose, to_config
from lorahydra.config.judge import CriterionConfig, JudgeConfig, RubricConfig
from lorahydra.errors import ConfigError

RUBRIC = RubricConfig(criteria={"c": CriterionConfig("d")})
BUILT_IN = ("gemini", "gemini_legacy", "gigachat", "local", "openai")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_judge_has_a_file_that_composes(name: str) -> None:
    config = compose([f"judge={name}"]).judge
    assert config.name == name
    assert config.model
    assert config.rubric.language == ("ru" if name == "gigachat" else "en")
    assert config.n_examples == 5
    assert config.verify_ssl_certs


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_examples": 0}, "judge.n_examples=0 is not allowed: it must be at least 1"),
        ({"n_examples": "some"}, "judge.n_examples=some is not allowed: give a whole number or all"),
        ({"n_examples": True}, "judge.n_examples=True"),
        ({"finalists": -1}, "judge.finalists=-1 is not allowed: it must be at least 0"),
        ({"max_calls": -1}, "judge.max_calls=-1 is not allowed: it must be at least 0"),
        ({"test_examples": 0}, "judge.test_examples=0 is not allowed: it must be at least 1"),
        ({"min_coverage": 1.1}, "judge.min_coverage=1.1"),
        ({"concurrency": 0}, "judge.concurrency=0"),
        ({"timeout": 0.0}, "judge.timeout=0.0"),
        ({"timeout": float("nan")}, "judge.timeout=nan"),
        ({"requests_per_minute": 0.0}, "judge.requests_per_minute=0.0"),
        ({"max_retries": -1}, "judge.max_retries=-1"),
        ({"temperature": 3.0}, "judge.temperature=3.0"),
        ({"max_cost": 1.0}, "judge.max_cost needs judge.prompt_price and judge.completion_price"),
        ({"base_url": "localhost:8000"}, "judge.base_url is not a valid address"),
        ({"base_url": "http://h:port"}, "judge.base_url is not a valid address"),
        ({"auth_url": "ftp://h"}, "judge.auth_url is not a valid address"),
        ({"base_url": "https://me:hunter2@h"}, "judge.base_url takes only an address"),
        ({"base_url": "https://h?key=hunter2"}, "judge.base_url takes only an address"),
        ({"api_key_env": "sk-hunter2"}, "judge.api_key_env takes the name of an environment variable"),
        ({"api_key_env": ["GOOD", "hunter2"]}, "judge.api_key_env takes the name of an environment variable"),
        ({"options": {"api_key": "hunter2"}}, "judge.options.api_key: configs must not hold secrets"),
        ({"rubric": RubricConfig()}, "judge.rubric.criteria is empty: choose a rubric"),
    ],
)
def test_a_bad_value_is_one_line_without_secrets(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JudgeConfig(**({"name": "openai", "rubric": RUBRIC} | values))
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"a b": CriterionConfig("d")}, "the name of a criterion may have letters, digits and _ only"),
        ({"a": CriterionConfig(" ")}, "judge.rubric.criteria.a.description is empty"),
        ({"a": CriterionConfig("d", -1)}, "judge.rubric.criteria.a.weight=-1"),
        ({"a": CriterionConfig("d", 0)}, "all weights are 0"),
        ({"a": CriterionConfig("d"), "A": CriterionConfig("d")}, "differ only in capital letters"),
    ],
)
def test_a_rubric_that_cannot_be(criteria: dict[str, CriterionConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RubricConfig(criteria=criteria)


@pytest.mark.parametrize(
    "override",
    [
        "+judge.api_key=hunter2",
        "judge.token=hunter2",
        "+judge.options.secret=hunter2",
        "judge.api_key_env=sk-hunter2",
        "judge.base_url=https://me:hunter2@h",
        "judge.base_url='https://h/v1?key=hunter2'",
    ],
)
def test_a_key_on_the_command_line_is_refused_before_anything_is_written(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["judge=openai", override])
    assert "hunter2" not in str(caught.value)


def test_names_of_variables_are_fine() -> None:
    assert compose(["judge=openai", "judge.api_key_env=[A_KEY,B_KEY]"]).judge.key_names == ["A_KEY", "B_KEY"]
    assert compose(["judge=openai", "judge.max_output_tokens=9"]).judge.max_output_tokens == 9
    assert compose(["judge=openai", "judge.api_key_env=null"]).judge.key_names == []


def test_a_key_of_the_wrong_type_in_a_file_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"judge\.api_key_env takes the name") as caught:
        to_config(OmegaConf.create({"judge": {"api_key_env": [1, "hunter2"]}}))
    assert "hunter2" not in str(caught.value)
