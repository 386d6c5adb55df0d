"""What goes in is learnt or refused: the cases of files that carry more than a question and its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.data.conftest import Write, make_tokenizer, qa
from tests.data.test_conversation import KINDS
from tests.support.learned import learned_texts, silent_drops

from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat
from lorahydra.errors import DataError

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def chat_rows(*turns: dict[str, Any], **columns: Any) -> list[dict[str, Any]]:
    """Twelve rows of one conversation, told apart by a number in each text."""
    text = json.dumps({"messages": turns, **columns})
    return [json.loads(text.replace("@", str(number))) for number in range(12)]


USER, ANSWER = {"role": "user", "content": "Q@"}, {"role": "assistant", "content": "The answer is @."}
FILES: dict[str, list[dict[str, Any]]] = {
    "plain": qa(12),
    "alpaca": [
        {"instruction": f"Q{n}", "input": "", "output": f"A{n}", "system": "S", "history": [["P", f"B{n}"]]}
        for n in range(12)
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"Q{n}"}, {"from": "gpt", "value": f"A{n}"}], "system": "S"}
        for n in range(12)
    ],
    "weights": chat_rows(USER, {**ANSWER, "content": "Bad draft @", "weight": 0}, USER, {**ANSWER, "weight": 1}),
    "weights at the end": chat_rows(USER, ANSWER, USER, {**ANSWER, "content": "Bad end @", "weight": 0}),
    "call last": chat_rows(USER, {"role": "assistant", "content": "Let me look @.", "tool_calls": [CALL]}),
    "call and result": chat_rows(
        USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "22"}, ANSWER
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["tiny", "qwen", "llama", "plain"])
def test_every_answer_is_learnt_or_the_data_are_refused(write: Write, name: str, kind: str) -> None:
    rows = FILES[name]
    tokenizer = make_tokenizer(**KINDS[kind])
    config = DataConfig(train_file=str(write("a.jsonl", rows)))
    # Llama's template drops the text beside a call.
    if "call" in name and (kind in ("tiny", "plain") or (kind, name) == ("llama", "call last")):
        with pytest.raises(DataError, match="the model's chat template"):
            silent_drops(rows, config, ChatFormat(tokenizer), tokenizer)
    else:
        assert silent_drops(rows, config, ChatFormat(tokenizer), tokenizer) == []
        assert "Bad" not in " ".join(learned_texts(config, ChatFormat(tokenizer), tokenizer))


def test_the_check_finds_what_is_missing(write: Write) -> None:
    tokenizer = make_tokenizer(**KINDS["tiny"])
    config = DataConfig(train_file=str(write("a.jsonl", qa(12))))
    rows = [*qa(12), {"answer": "Nobody learns this."}]
    assert silent_drops(rows, config, ChatFormat(tokenizer), tokenizer) == ["Nobody learns this."]
