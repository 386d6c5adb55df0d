"""A judge is one module, one file of settings and one line of documentation; nothing else has to know about it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from tests.support.configs import judge_config

import lorahydra
from lorahydra.cli.judges import judges
from lorahydra.config.compose import compose, config_dir
from lorahydra.config.judge_registry import JUDGES, install_command, judge_factory, sdk_package
from lorahydra.judges import Judge, JudgePrompt, JudgeReply

ROOT = Path(__file__).parents[2]
BUILT_IN = JUDGES.built_in
SERVICES = sorted(BUILT_IN - {"local"})


class Mine(Judge):
    model = "mine-1"

    def __init__(self, config: object) -> None: ...

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        return JudgeReply("{}", self.model)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_judge_has_settings_and_a_line_of_documentation(name: str) -> None:
    assert Path(config_dir(), "judge", f"{name}.yaml").is_file()
    config = judge_config(name)
    assert config.name == name
    assert config.model
    assert Judge in judge_factory(name).__mro__
    [line] = [line for line in (ROOT / "docs" / "judges.md").read_text().splitlines() if line.startswith(f"| `{name}`")]
    assert all(f"`{variable}`" in line for variable in config.key_names) or "the same" in line
    assert sdk_package(name) is None or install_command(name) in line


def test_the_sdk_of_a_judge_is_the_extra_of_its_name() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in {name.replace("_", "-") for name in BUILT_IN} & set(extras):
        [requirement] = extras[extra]
        assert requirement.partition(">=")[0] == sdk_package(extra.replace("-", "_"))
        assert f",{extra}," in f",{extras['all'][0].removeprefix('lorahydra[').rstrip(']')},"
    assert sdk_package("local") is None
    assert sdk_package("service") is None, "an extra that does not belong to a judge"


def test_no_other_module_names_a_judge() -> None:
    """But for the service's order of preference."""
    source = ROOT / "src" / "lorahydra"
    for path in source.rglob("*.py"):
        if path.parent.name == "builtin" or path == source / "service" / "choices.py":
            continue
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not constants & set(SERVICES), path


def test_a_module_is_all_that_a_judge_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    module.__all__, module.Mine = ["Mine"], Mine  # type: ignore[attr-defined]
    monkeypatch.setattr(JUDGES, "built_in", BUILT_IN | {"mine"})
    monkeypatch.setitem(sys.modules, "lorahydra.judges.builtin.mine", module)
    assert isinstance(lorahydra.get_model_by_id("mine"), Mine)
    assert compose(["judge=mine"]).judge.name == "mine"
    listed = CliRunner().invoke(judges, ["list"])
    assert listed.exit_code == 0, listed.output
    [line] = [line for line in listed.output.splitlines() if line.startswith("mine ")]
    assert line.split() == ["mine", "-", "not", "needed", "built", "in"]
