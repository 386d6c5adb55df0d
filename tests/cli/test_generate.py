"""`lorahydra generate`: prompts from anywhere, answers on stdout, and a chat on a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.support.programs import ProgramRunner, environment
from tests.support.waiting import SECONDS

from lorahydra.cli import chat as chat_module
from lorahydra.cli.commands import commands
from lorahydra.cli.showing import printable, show_answers
from lorahydra.data.examples import Message
from lorahydra.errors import ConfigError, DataError, LorahydraError, OutputError
from lorahydra.inference.adapted_model import conversations, open_adapter


@pytest.fixture(scope="module")
def answers(tiny_adapter: Path) -> Callable[..., list[str]]:
    """What the adapter, or its base model, says."""

    def answer(*prompts: str, tuned: bool = True) -> list[str]:
        with open_adapter(tiny_adapter, device="cpu") as model:
            return model.answer(conversations(prompts), tuned=tuned)

    return answer


def generate(*arguments: str | Path, piped: str | bytes = "") -> Result:
    words = ["generate", *map(str, arguments)]
    return CliRunner().invoke(commands, words, input=piped, standalone_mode=False, catch_exceptions=False)


def rows(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_prompt_is_answered_on_stdout(tiny_adapter: Path, answers: Callable[..., list[str]]) -> None:
    done = generate(tiny_adapter, "What is one and one?")
    assert done.stdout == answers("What is one and one?")[0] + "\n"
    assert done.stderr == ""


def test_several_prompts_are_shown_with_their_question(tiny_adapter: Path, answers: Callable[..., list[str]]) -> None:
    done = generate(tiny_adapter, "one", "two [bold]")
    assert done.stdout == "".join(f"{answer}\n" for answer in answers("one", "two [bold]"))
    assert done.stderr == "> one\n\n> two [bold]\n"


def test_what_is_piped_is_one_prompt(tiny_adapter: Path, answers: Callable[..., list[str]]) -> None:
    done = generate(tiny_adapter, "--json", piped="two\nlines\n")
    assert rows(done.stdout) == [{"prompt": "two\nlines", "answer": answers("two\nlines")[0]}]


def test_base_and_adapter_side_by_side(tiny_adapter: Path, answers: Callable[..., list[str]]) -> None:
    done = generate(tiny_adapter, "one", "two", "--compare", "--json")
    [base], [tuned] = answers("one", tuned=False), answers("one")
    assert rows(done.stdout)[0] == {"prompt": "one", "answer": tuned, "base_answer": base}
    assert rows(generate(tiny_adapter, "one", "--untuned", "--json").stdout) == [{"prompt": "one", "answer": base}]
    table = generate(tiny_adapter, "one", "two", "--compare").stdout
    assert "untuned" in table
    assert "prompt" in table


def test_markup_and_control_characters_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_answers([{"prompt": "p", "answer": "[bold]tuned[/bold] [red]x", "base_answer": "[/] :smile: base"}])
    shown = capsys.readouterr().out
    assert "[bold]tuned[/bold] [red]x" in shown
    assert "[/] :smile: base" in shown
    show_answers([{"prompt": "p", "answer": "[bold]alone"}])
    assert capsys.readouterr().out == "[bold]alone\n"
    assert printable("a\x1b]0;title\x07\n\tб", terminal=True) == "a\\x1b]0;title\\x07\n\tб"
    assert printable("a\x1b", terminal=False) == "a\x1b"


FILES: dict[str, tuple[str, list[str]]] = {
    "prompts.txt": ("one\n\n  two [x]  \nтри\n", ["one", "two [x]", "три"]),
    "pairs.jsonl": ('{"prompt": "one", "completion": "1"}\n{"prompt": "two", "completion": "2"}', ["one", "two"]),
    "prompts.jsonl": ('{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
    "questions.json": ('[{"question": "one", "id": 1}, {"question": "two", "id": 2}]', ["one", "two"]),
    "rows.csv": ("instruction,input\none,a\ntwo,\n", ["one\n\na", "two"]),
    "messages.jsonl": ('{"messages": [{"role": "user", "content": "one"}]}', ["one"]),
    "answered.jsonl": (
        '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]}',
        ["one"],
    ),
    "history.jsonl": (
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, '
        '{"from": "human", "value": "c"}]}',
        ["user: a\nassistant: b\nuser: c"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_prompts_of_a_file(tiny_adapter: Path, tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_text(content, "utf-8")
    done = generate(tiny_adapter, "--file", tmp_path / name, "--out", tmp_path / "out.jsonl", "--max-new-tokens", "2")
    assert done.stdout == ""
    assert f"{len(expected)} answers" in done.stderr
    written = rows((tmp_path / "out.jsonl").read_text("utf-8"))
    assert [row["prompt"] for row in written] == expected
    assert set(written[0]) == {"prompt", "answer"}
    # What was written can be read again.
    if "\n" not in expected[0]:
        again = generate(tiny_adapter, "--file", tmp_path / "out.jsonl", "--json", "--max-new-tokens", "2")
        assert rows(again.stdout) == written


@pytest.mark.parametrize(("name", "content"), [("a.txt", "Привет\n"), ("a.csv", "prompt\nПривет\n"), ("", "Привет")])
def test_prompts_in_another_encoding(
    tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / (name or "piped")).write_bytes(content.encode("cp1251"))
    how = ["--file", name] if name else []
    options = ("--encoding", "windows-1251", "--json", "--max-new-tokens", "1")
    done = generate(tiny_adapter, *how, *options, piped="" if name else content.encode("cp1251"))
    assert [row["prompt"] for row in rows(done.stdout)] == ["Привет"]


def test_prompts_of_a_parquet_file(tiny_adapter: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["one", "two"], "n": [1, 2]}), tmp_path / "p.parquet")
    done = generate(tiny_adapter, "--file", tmp_path / "p.parquet", "--json", "--max-new-tokens", "1")
    assert [row["prompt"] for row in rows(done.stdout)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "has no prompts"),
        ("a.txt", "", "empty"),
        ("a.txt", b"\xff\xfe", "has no prompts"),
        ("a.txt", "Привет, как дела?\n".encode("cp1251"), "a.txt:1: .*not UTF-8.*so set --encoding windows-1251,"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": 2}', "a.jsonl:2: field 'prompt'"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt": ', "a.jsonl:2"),
        ("a.jsonl", '{"prompt": "one"}\n[1]', "a.jsonl:2: holds a list"),
        ("a.jsonl", "{}", "an object without fields"),
        ("a.jsonl", '{"prompt": ""}', "is empty"),
        ("a.jsonl", '{"text": "x"}', "none of the columns found .text. holds prompts"),
        ("a.jsonl", '{"prompt": "x", "question": "y"}', "prompt and question could all be the prompts"),
        ("a.jsonl", '{"messages": [{"role": "system", "content": "x"}]}', "no user message"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "no user message"),
        ("a.jsonl", '{"messages": []}', "is an empty list"),
        ("a.docx", "x", "extension '.docx' is not supported"),
        ("a.txt", None, "no such file|cannot be read"),
        ("a.jsonl", None, "no such file"),
    ],
)
def test_a_mistake_in_a_file(
    tiny_adapter: Path, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        generate(tiny_adapter, "--file", tmp_path / name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["x", "--compare", "--untuned"], ConfigError, "give one of them"),
        (["x", "--file", "a.txt"], ConfigError, "not both"),
        (["--file", "a.txt", "--encoding", "rot13"], ConfigError, "--encoding=rot13 is not a character encoding"),
        (["x", "--device", "tpu"], ConfigError, "model.device=tpu"),
        (["x", "--out", "."], OutputError, "it is a folder"),
        (["x", "--out", "a.txt/b.jsonl"], OutputError, "a file exists where a folder is needed"),
        (["x", "--dtype", "float16", "--device", "cpu"], ConfigError, "needs a GPU"),
        (["--file", "a.txt", "--out", "./a.txt"], ConfigError, "is the file with the prompts"),
        ([" "], DataError, "nothing to answer"),
        ([], DataError, "nothing to answer"),
        (["\udcff"], DataError, "not UTF-8"),
        (["x", "--base", "./nowhere"], LorahydraError, "nowhere"),
        (["x", "--max-new-tokens", "100000"], ConfigError, "context"),
    ],
    ids=str,
)
def test_options_that_cannot_be(
    tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], error: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(error, match=message):
        generate(tiny_adapter, *options)
    assert (tmp_path / "a.txt").read_text() == "one"


def test_bytes_that_are_no_text(tiny_adapter: Path) -> None:
    with pytest.raises(DataError, match="the piped text is not UTF-8"):
        generate(tiny_adapter, piped=b"\xff\xff")


@pytest.mark.parametrize(
    "arguments",
    [["nosuch", "hi"], ["./nosuch", "hi"], ["nosuch", "hi", "--compare", "--untuned"], ["x", "--file", "y.txt"]],
)
def test_a_typo_needs_no_torch(tmp_path: Path, runner: ProgramRunner, arguments: list[str]) -> None:
    script = (
        "import sys\nfrom lorahydra.cli import main\n"
        f"sys.argv = ['lorahydra', 'generate', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    done = runner.run(["-c", script], tmp_path)
    assert done.stdout == "2 False\n", done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_system_message(tiny_adapter: Path, answers: Callable[..., list[str]]) -> None:
    with open_adapter(tiny_adapter, device="cpu", system_prompt="Sing.") as model:
        expected = model.answer(conversations(["one"]))
    assert expected != answers("one")
    assert generate(tiny_adapter, "one", "--system", "Sing.").stdout == f"{expected[0]}\n"


# --- the chat ---------------------------------------------------------------------------------------------------------


class Speaker:
    """Answers with what it was asked, and stops or fails where a test wants it to."""

    class base:
        source = "tiny"

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[Message, ...], bool]] = []

    def answer(self, asked: list[tuple[Message, ...]], *, max_new_tokens: int | None, tuned: bool) -> list[str]:
        [conversation] = asked
        self.asked.append((conversation, tuned))
        if "stop" in conversation[-1].content:
            raise KeyboardInterrupt
        if "fail" in conversation[-1].content:
            raise ConfigError("too long")
        return [f"{'tuned' if tuned else 'untuned'} {conversation[-1].content}"]


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException, compare: bool = False) -> Speaker:
    """A chat of these lines; the end of the input after the last one."""
    waiting: Iterator[str | BaseException] = iter([*lines, EOFError()])

    def read(_prompt: str = "") -> str:
        line = next(waiting)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    speaker = Speaker()
    chat_module.chat(speaker, max_new_tokens=None, compare=compare, tuned=True)  # type: ignore[arg-type]
    return speaker


def test_a_chat_keeps_its_history_until_it_is_reset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = talk(monkeypatch, "one", "  ", "two", "/reset", "three", "/exit", "four")
    histories = [[message.content for message in asked] for asked, _ in speaker.asked]
    assert histories == [["one"], ["one", "tuned one", "two"], ["three"]]
    shown = capsys.readouterr()
    assert shown.out == "tuned one\ntuned two\ntuned three\n"
    assert "The conversation is forgotten." in shown.err


def test_a_chat_that_compares_keeps_the_tuned_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = talk(monkeypatch, "one", "two", compare=True)
    assert [tuned for _, tuned in speaker.asked] == [False, True, False, True]
    assert speaker.asked[-1][0][1] == Message("assistant", "tuned one")
    assert capsys.readouterr().out == "untuned one\ntuned one\nuntuned two\ntuned two\n"


def test_what_is_stopped_or_refused_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = talk(monkeypatch, "one", "stop", "fail", "/nope", "/etc/passwd is what?")
    assert [message.content for message in speaker.asked[-1][0]] == ["one", "tuned one", "/etc/passwd is what?"]
    said = capsys.readouterr().err
    for part in ("Stopped", "too long; /reset starts over", "/nope is not a command"):
        assert part in said


def test_ctrl_c_at_the_prompt_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        talk(monkeypatch, "stop", KeyboardInterrupt())


def test_a_line_that_is_no_text_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = talk(monkeypatch, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "\udcff", "one")
    assert len(speaker.asked) == 1
    assert capsys.readouterr().err.count("not UTF-8") == 2


def test_a_chat_needs_no_file(tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorahydra.cli import generate as generate_module

    monkeypatch.setattr(generate_module, "_conversations", lambda *_: None)
    for option in (["--json"], ["--out", "x.jsonl"]):
        with pytest.raises(ConfigError, match="need prompts"):
            generate(tiny_adapter, *option)


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, programs: ProgramRunner, command: list[str], place: Path) -> None:
        self._main, terminal = pty.openpty()
        variables = environment(TERM="dumb", COLUMNS="100")
        self.process = programs.start(command, place, variables, terminal=os.ttyname(terminal))
        self._terminal = terminal

    def wait_for(self, text: str) -> str:
        """Everything that is shown up to and with `text`."""
        shown = b""
        while text.encode() not in shown:
            ready, _, _ = select.select([self._main], [], [], SECONDS)
            assert ready, shown
            shown += os.read(self._main, 1)
        return shown.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)
        os.close(self._main)


@pytest.mark.slow
def test_a_chat_in_a_terminal(
    tiny_adapter: Path, tmp_path: Path, answers: Callable[..., list[str]], programs: ProgramRunner
) -> None:
    command = ["-m", "lorahydra", "generate", str(tiny_adapter), "--compare", "--device", "cpu"]
    with contextlib.closing(Terminal(programs, command, tmp_path)) as terminal:
        converse(terminal, *answers("one", tuned=False), *answers("one"))


def converse(terminal: Terminal, base: str, tuned: str) -> None:
    assert "/reset forgets" in terminal.wait_for("\n> ")
    terminal.type("one\n")
    shown = terminal.wait_for("\n> ")
    assert printable(base, terminal=True) in shown
    assert printable(tuned, terminal=True) in shown.partition("\ntuned:")[2]
    terminal.type("/reset\n")
    assert "The conversation is forgotten." in terminal.wait_for("\n> ")
    terminal.process.send_signal(signal.SIGINT)
    # A signal between the prompt and the wait for a key is noticed with the next one.
    terminal.type("\n")
    assert terminal.process.wait() == 130
    assert "lorahydra: interrupted" in terminal.wait_for("interrupted")
