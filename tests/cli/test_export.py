"""`lorahydra export`: mistakes are one quick line, and what comes out is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.programs import ProgramRunner

from lorahydra.cli.commands import commands
from lorahydra.errors import LorahydraError


def export(*arguments: str) -> str:
    done = CliRunner().invoke(commands, ["export", *arguments], standalone_mode=False, catch_exceptions=False)
    return done.stdout


def test_an_adapter_and_a_model(tiny_adapter: Path, tmp_path: Path) -> None:
    said = export(str(tiny_adapter), "--to", str(tmp_path / "a"), "--dtype", "bfloat16")
    assert said == f"{tmp_path / 'a'}: adapter of {tiny_adapter}; README.md says how to use it\n"
    assert (tmp_path / "a" / "adapter_model.safetensors").is_file()
    said = export(str(tmp_path / "a"), "--to", str(tmp_path / "m"), "--merged")
    assert "merged model" in said
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_files_for_other_programs(tiny_adapter: Path, tmp_path: Path) -> None:
    said = export(str(tiny_adapter), "--gguf", "--to", str(tmp_path / "g"))
    assert said == f"{tmp_path / 'g'}: adapter of {tiny_adapter} for llama.cpp; README.md says how to use it\n"
    export(str(tiny_adapter), "--gguf", str(tmp_path / "m"), "--merged", "--dtype", "q8_0")
    export(str(tiny_adapter), "--ollama", str(tmp_path / "o"), "--from", "tiny:1b")
    export(str(tiny_adapter), "--vllm", str(tmp_path / "v"), "--to", str(tmp_path / "v"))
    for file in ("g/adapter.gguf", "m/model.gguf", "o/Modelfile", "v/serve.sh"):
        assert (tmp_path / file).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gguf"], "name a new folder with --to DIR"),
        (["--gguf", "a", "--to", "b"], "--gguf names the folder a, and --to names b"),
        (["--gguf", "--vllm", "a"], "choose one of --gguf, --vllm"),
        (["--to", "a", "--dtype", "q8_0"], "--dtype=q8_0 is for --gguf and --ollama"),
        (["--gguf", "a", "--merged", "--with-base"], "--with-base is for --gguf without --merged"),
        (["--vllm", "a", "--from", "x"], "--from is for --ollama without --merged"),
    ],
)
def test_options_that_do_not_fit_each_other(arguments: list[str], words: str) -> None:
    with pytest.raises(LorahydraError, match=words):
        export("anything", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch", "--to", "new"], "there is no adapter nosuch"),
        (["ADAPTER"], "--to"),
        (["ADAPTER", "--to", "new", "--dtype", "int4"], "int4"),
        (["ADAPTER", "--to", "full"], "the folder full is not empty"),
        (["ADAPTER", "--to", "full", "--merged"], "the folder full is not empty"),
        (["ADAPTER", "--to", "new", "--uri", "carrier-pigeon://x", "--frob"], "--frob"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    tiny_adapter: Path, tmp_path: Path, runner: ProgramRunner, arguments: list[str], words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    command = [str(tiny_adapter) if word == "ADAPTER" else word for word in arguments]
    done = runner.run(["-m", "lorahydra", "export", *command], tmp_path)
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("lorahydra: ")
    assert words in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["full"]


def test_a_base_that_does_not_exist_makes_nothing(tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(LorahydraError, match="nowhere does not exist"):
        export(str(tiny_adapter), "--to", str(tmp_path / "new"), "--merged", "--base", "./nowhere")
    assert not list(tmp_path.iterdir())


def test_the_target_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(LorahydraError, match="is not empty"):
        export("no-such-adapter", "--to", str(tmp_path / "full"))
