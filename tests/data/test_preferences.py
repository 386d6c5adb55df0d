"""Pairs of answers in the forms in which datasets hold them, as conversations and as tokens."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from tests.data.conftest import Write, pairs, train_rows

from lorahydra.config.schema import ColumnsConfig, DataConfig
from lorahydra.data import check, load_splits
from lorahydra.errors import DataError

QUESTION = {"role": "user", "content": "Sky?"}
GOOD, BAD = {"role": "assistant", "content": "Blue."}, {"role": "assistant", "content": "Green."}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def conversation(*messages: dict[str, str]) -> str:
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)


FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "messages": {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
    "prompt as text, answers as messages": {"prompt": "Sky?", "chosen": [GOOD], "rejected": [BAD]},
    "implicit prompt": {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
    "a prompt beside whole conversations": {"prompt": "Sky?", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
    "transcripts": {"chosen": conversation(QUESTION, GOOD), "rejected": conversation(QUESTION, BAD)},
    "a transcript as prompt": {"prompt": "\n\nHuman: Sky?\n\nAssistant:", "chosen": "Blue.", "rejected": "Green."},
    "cut transcripts": {
        "chosen": conversation(QUESTION, GOOD).lstrip(),
        "rejected": conversation(QUESTION, BAD).lstrip(),
    },
    "a cut transcript as prompt": {"prompt": "Human: Sky?\n\nAssistant: ", "chosen": "Blue.", "rejected": "Green."},
    "texts alone": {"chosen": "Sky? Blue.", "rejected": "Sky? Green."},
    "another name of the prompt": {"question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "the prompt as input": {"input": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Sky?"}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Green."},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(write: Write, form: str) -> None:
    rows = train_rows(write("pairs.jsonl", [FORMS[form]]), format="preference")
    assert rows.report.format == "preference"
    example = rows.example(0)
    assert [(m.role, m.content) for m in example.messages] == [("user", "Sky?"), ("assistant", "Blue.")]
    assert [(m.role, m.content) for m in example.rejected] == [("user", "Sky?"), ("assistant", "Green.")]


def test_a_dialogue_that_was_asked_for_is_an_answer(write: Write) -> None:
    dialogue = conversation(QUESTION, GOOD).lstrip()
    row = {"prompt": f"{dialogue}\n\nWrite another one.", "chosen": dialogue, "rejected": "No."}
    messages = train_rows(write("pairs.jsonl", [row]), format="preference").example(0).messages
    assert [(m.role, m.content) for m in messages] == [("user", row["prompt"]), ("assistant", dialogue)]


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
@pytest.mark.parametrize("form", ["texts", "messages"])
def test_pairs_in_other_files(write: Write, kind: str, form: str) -> None:
    path = write("pairs.jsonl", [FORMS[form]] * 2).with_suffix(f".{kind}")
    row = FORMS[form]
    if kind == "json":
        path.write_text(json.dumps([row, row]))
    elif kind == "csv":
        pd.DataFrame([{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}]).to_csv(
            path, index=False
        )
    else:
        pd.DataFrame([row, row]).to_parquet(path)
    assert train_rows(path).example(0).rejected[-1].content == "Green."


def test_what_both_have_in_common_carries_no_loss(write: Write) -> None:
    end = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Light."}]
    row = {"system": "Be brief.", "chosen": [*EARLIER, QUESTION, GOOD, *end], "rejected": [*EARLIER, QUESTION, BAD]}
    example = train_rows(write("pairs.jsonl", [row])).example(0)
    assert example.messages[0].content == example.rejected[0].content == "Be brief."
    assert [m.content for m in example.messages if m.role == "assistant" and m.learned] == ["Blue.", "Light."]
    assert [m.content for m in example.rejected if m.role == "assistant" and m.learned] == ["Green."]


def test_the_rejected_answer_is_part_of_the_content(write: Write) -> None:
    rows = [FORMS["texts"], {**FORMS["texts"], "rejected": "Red."}]
    read = train_rows(write("pairs.jsonl", rows))
    assert len(set(read.example_keys())) == 2
    assert len(set(read.prompt_keys())) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue."}, "are the same, so nothing is preferred"),
        ({"prompt": "Sky?", "chosen": " ", "rejected": "Green."}, "chosen: is empty"),
        ({"prompt": "Sky?", "chosen": "Blue.", "rejected": 3}, "rejected: holds the number 3"),
        ({"id": 1, "chosen": "Sky? Blue.", "rejected": "Sky? Green."}, "name the column with the prompts"),
        ({"chosen": "Blue.", "rejected": "Green."}, "hold no prompt"),
        ({"chosen": [QUESTION, GOOD], "rejected": [*EARLIER, BAD]}, "do not begin with the same prompt"),
        ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION]}, "ends with a user message"),
        ({"prompt": [SYSTEM], "chosen": [GOOD], "rejected": [BAD]}, "no user message before the answers"),
    ],
)
def test_a_row_that_is_not_a_pair_is_one_line(write: Write, row: dict[str, Any], message: str) -> None:
    report = check(DataConfig(train_file=str(write("pairs.jsonl", [row]))), 1, chat=None)
    [problem] = report.problems
    assert message in f"{problem.field}: {problem.message}"


def test_other_columns_come_first(write: Write) -> None:
    """A file of conversations that also has pairs stays one of conversations, unless pairs are asked for."""
    path = write("both.jsonl", [{"messages": [QUESTION, GOOD], **FORMS["texts"]}])
    assert train_rows(path).report.format == "messages"
    assert train_rows(path, format="preference").example(0).rejected
    chosen = train_rows(write("pairs.jsonl", [FORMS["texts"]]), columns=ColumnsConfig(completion="chosen"))
    assert pairs(chosen) == [("Sky?", "Blue.")]


def test_files_of_both_kinds_are_refused(write: Write) -> None:
    files = [
        str(write("pairs.jsonl", [FORMS["texts"]])),
        str(write("answers.jsonl", [{"question": "a", "answer": "b"}])),
    ]
    with pytest.raises(DataError, match=r"pairs.jsonl: holds pairs of answers .* and .*answers.jsonl does not"):
        load_splits(DataConfig(train_file=files), 1)


def test_a_file_without_pairs_is_one_line(write: Write) -> None:
    path = write("answers.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match="holds no pairs of answers, which training.method=dpo needs"):
        load_splits(DataConfig(train_file=str(path), format="preference"), 1)
