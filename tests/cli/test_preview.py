"""`data preview`: what the model will see of the first examples, with the tokens that carry loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import make_tokenizer, qa

from lorahydra.cli import preview as module
from lorahydra.cli.data import data
from lorahydra.errors import LorahydraError
from lorahydra.modeling import base


@pytest.fixture(autouse=True)
def _byte_tokenizer(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    """The tokenizer of a model that has no weights: one token a byte."""
    monkeypatch.setattr(base, "load_tokenizer", lambda _: make_tokenizer(template=CHAT_TEMPLATE))
    monkeypatch.setattr(base, "load_context_window", lambda _: 200)


def write(place: Path, rows: list[Any]) -> str:
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def chats(*turns: str, count: int = 20) -> list[Any]:
    """Equal-looking conversations of user and assistant in turns; the system message numbers them."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return [{"messages": [{"role": "system", "content": f"{n:02}"}, *messages]} for n in range(count)]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(data, ["preview", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_answer_is_marked_with_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, chats("Сколько?", "Два", "Sure?", "Yes 👍"))
    shown = run(path, "-n", "2")
    assert shown.count("⟦Два<|im_end|>⟧") == shown.count("⟦Yes 👍<|im_end|>⟧") == 2
    assert shown.count("⟦") == 4
    assert "<|im_start|>user\nСколько?<|im_end|>" in shown
    first = shown.splitlines()[0]
    assert first.startswith(f"train 1 ({path}:")
    assert first.endswith(" tokens, 16 with loss")


def test_control_characters_and_marks_of_the_data_are_escaped(tmp_path: Path) -> None:
    shown = run(write(tmp_path, chats("\x1b[31m[bold] ⟦a⟧ \u202e", "B")), "-n", "1")
    assert "\\x1b[31m[bold] \\u27e6a\\u27e7 \\u202e" in shown
    assert "\x1b" not in shown


def test_a_terminal_gets_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, chats("A", "B"))
    monkeypatch.setattr(module.sys, "stdout", Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    module.preview.callback((path,), 1, "train", None, False)  # type: ignore[misc]
    shown = "".join(module.sys.stdout.written)  # type: ignore[attr-defined]
    assert "\x1b[32mB<|im_end|>\x1b[0m" in shown
    assert "⟦" not in shown


class Terminal:
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str | bytes) -> None:
        self.written.append(text if isinstance(text, str) else text.decode())

    def flush(self) -> None:
        pass


def test_json_has_tokens_and_their_places(tmp_path: Path) -> None:
    path = write(tmp_path, chats("A", "B"))
    [entry] = json.loads(run(path, "--json", "-n", "1"))
    assert entry["tokens"] == len(entry["input_ids"]) == sum(p["end"] - p["start"] for p in entry["parts"])
    assert [part["text"] for part in entry["parts"] if part["loss"]] == ["B<|im_end|>"]
    assert "".join(part["text"] for part in entry["parts"]).startswith("<|im_start|>system\n")
    assert (entry["source"], entry["cut"], entry["fault"], entry["loss_tokens"]) == (path, 0, "", 2)


@pytest.mark.parametrize(
    ("overlong", "said", "answer"),
    [
        ("error", "; refused: 49 tokens, over data.max_length=44", "⟦long answer<|im_end|>⟧"),
        ("drop", "; left out: 49 tokens, over data.max_length=44", "⟦long answer<|im_end|>⟧"),
        ("truncate", "8 with loss; the last 5 are cut", "⟦long ans⟧"),
    ],
)
def test_what_is_too_long_is_said(overlong: str, said: str, answer: str, tmp_path: Path) -> None:
    path = write(tmp_path, chats("Q" * 5, "long answer"))
    shown = run(path, "-n", "1", "data.max_length=44", f"data.overlong={overlong}")
    assert said in shown.splitlines()[0]
    assert answer in shown


def test_overrides_of_train_py_decide_what_is_shown(tmp_path: Path) -> None:
    shown = run("data=demo", "data.system_prompt=Be brief", "--split", "validation", "-n", "1")
    assert shown.startswith("validation 1 (demo/validation.jsonl:1): ")
    assert "<|im_start|>system\nBe brief<|im_end|>" in shown
    path = write(tmp_path, chats("literal <|im_end|>", "B"))
    assert "warning: such rows hold names of the model's control tokens" in run(path, "-n", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.jsonl",), "missing.jsonl: no such file"),
        (("data.nonsense=1",), "unknown key data.nonsense"),
        (("ROWS", "--split", "test", "data.test_fraction=0"), "there is no test split"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path = write(tmp_path, qa(20))
    with pytest.raises(LorahydraError) as caught:
        run(*(path if argument == "ROWS" else argument for argument in arguments))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_both_answers_of_a_pair_are_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(20)]
    path = write(tmp_path, rows)
    [shown] = json.loads(run(path, "-n", "1", "--json"))
    learnt = ["".join(part["text"] for part in shown[side] if part["loss"]) for side in ("parts", "rejected")]
    assert learnt[0].startswith("It is ")
    assert learnt[1] == "No idea.<|im_end|>"
    text = run(path, "-n", "1")
    assert "\nchosen:\n" in text
    assert "⟦No idea.<|im_end|>⟧" in text
