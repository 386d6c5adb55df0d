"""`lorahydra evaluate`: the adapter brings what it belongs to, unless the overrides say otherwise."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.conftest import CHAT_TEMPLATE
from tests.support.programs import ProgramRunner

from lorahydra.cli import evaluate as evaluate_module
from lorahydra.cli.commands import commands
from lorahydra.config.compose import compose
from lorahydra.config.schema import ModelConfig
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata, write_metadata


def test_the_adapter_says_what_it_belongs_to(tiny_adapter: Path, tiny_model: Path) -> None:
    config = compose(evaluate_module._with_metadata(tiny_adapter, ["lora.r=8"]))
    assert config.model.name_or_path == str(tiny_model)
    assert config.model.chat_template == CHAT_TEMPLATE
    assert config.data.system_prompt == "Be brief."
    assert config.lora.r == 8


def test_a_quantised_base_stays_quantised(tiny_adapter: Path, tmp_path: Path) -> None:
    folder, metadata = shutil.copytree(tiny_adapter, tmp_path / "adapter"), read_metadata(tiny_adapter)
    model = dataclasses.replace(metadata.model, quantization="nf4")
    write_metadata(folder, dataclasses.replace(metadata, model=model))
    for given, expected in (([], "nf4"), (["model.quantization=null"], None), (["model=smollm2_135m"], None)):
        assert compose(evaluate_module._with_metadata(folder, given)).model.quantization == expected


def test_overrides_win(tiny_adapter: Path) -> None:
    given = ["model=smollm2_135m", "data.system_prompt=Sing."]
    config = compose(evaluate_module._with_metadata(tiny_adapter, given))
    assert config.model.name_or_path == "smollm2-135m-instruct"
    assert config.model.chat_template is None, "a template belongs to its model"
    assert config.data.system_prompt == "Sing."


def test_a_base_that_was_moved_keeps_the_template(tiny_adapter: Path) -> None:
    config = compose(evaluate_module._with_metadata(tiny_adapter, ["model.name_or_path=/models/moved"]))
    assert (config.model.name_or_path, config.model.chat_template) == ("/models/moved", CHAT_TEMPLATE)


def test_hostile_text_is_a_value_and_nothing_else(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "hostile")
    text = "{{ x }}\n'a\" ${oc.env:HOME} \\' lora.r=64,\\"
    write_metadata(folder, AdapterMetadata(ModelConfig(name_or_path="a b", chat_template=text), system_prompt=text))
    config = compose(evaluate_module._with_metadata(folder, []))
    assert (config.model.name_or_path, config.model.chat_template, config.data.system_prompt) == ("a b", text, text)
    assert read_metadata(folder).system_prompt == text


def test_whatever_names_an_adapter_is_looked_up(
    tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def look(name: str, *, uri: str | None = None) -> object:
        asked.append((name, uri))
        raise KeyboardInterrupt

    monkeypatch.setattr("lorahydra.adapters.find.find_adapter", look)
    monkeypatch.chdir(tmp_path)
    for words in (["demo"], ["demo", "--uri", "sqlite:///a.db"], ["demo", "tracking.uri=sqlite:///b.db", "lora.r=8"]):
        CliRunner().invoke(commands, ["evaluate", *words], standalone_mode=False)
    assert asked == [("demo", None), ("demo", "sqlite:///a.db"), ("demo", "sqlite:///b.db")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nosuch"], "there is no adapter nosuch"), (["nosuch", "lora.rr=8"], "lora.rr"), (["./x"], "is not an adapter")],
)
def test_a_mistake_is_one_line(tmp_path: Path, runner: ProgramRunner, arguments: list[str], words: str) -> None:
    done = runner.run(["-m", "lorahydra", "evaluate", *arguments], tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert words in line
    assert not list(tmp_path.iterdir())
