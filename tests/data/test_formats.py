"""Column schemes: detection, mapping, and strict conversion of rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorahydra.data.examples import Message
from lorahydra.data.formats import RowError, detect
from lorahydra.data.problems import Fault
from lorahydra.errors import DataError


def convert(row: dict[str, Any], **mapping: str) -> list[tuple[str, str]]:
    messages = detect(row, "auto", mapping, "a.jsonl").messages(row)
    return [(message.role, message.content) for message in messages]


def fault(row: dict[str, Any], like: dict[str, Any]) -> RowError:
    with pytest.raises(RowError) as caught:
        detect(like, "auto", {}, "a.jsonl").messages(row)
    return caught.value


USER, ASSISTANT = ("user", "Q"), ("assistant", "A")
CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A", "id": 3},
        {"question": "Q", "answer": "A"},
        {"instruction": "Q", "output": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "input": None, "output": "A"},
        CHAT,
        {"messages": json.dumps(CHAT["messages"])},
        {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {
            "conversations": [
                {"from": "system", "value": " "},
                {"from": "user", "value": "Q"},
                {"from": "assistant", "value": "A"},
            ]
        },
    ],
)
def test_every_scheme_gives_the_same_conversation(row: dict[str, Any]) -> None:
    assert convert(row) == [USER, ASSISTANT]


def test_input_is_put_under_the_instruction() -> None:
    row = {"instruction": "Translate:", "input": "chat", "output": "cat"}
    assert convert(row) == [("user", "Translate:\n\nchat"), ("assistant", "cat")]


def test_text_is_kept_exactly() -> None:
    assert convert({"prompt": " Q\n", "completion": "\tÄ 😀 "}) == [
        ("user", " Q\n"),
        ("assistant", "\tÄ 😀 "),
    ]


def test_a_long_conversation_keeps_its_order_and_system_message() -> None:
    turns = [("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    layout = detect({"messages"}, "auto", {}, "a")
    row = {"messages": [{"role": role, "content": text, "name": None} for role, text in turns]}
    assert layout.messages(row) == tuple(Message(*turn) for turn in turns)
    assert layout.ignored == {"messages[].name"}


def test_columns_are_mapped() -> None:
    assert convert({"q": "Q", "a": "A"}, question="q", answer="a") == [USER, ASSISTANT]
    assert convert({"q": "Q", "answer": "A"}, question="q") == [USER, ASSISTANT]


def test_a_mapping_decides_between_schemes() -> None:
    row = {"prompt": "P", "completion": "C", "question": "Q", "reply": "A"}
    assert convert(row, answer="reply") == [USER, ASSISTANT]


class TestDetection:
    def test_two_schemes_that_fit_are_refused(self) -> None:
        columns = ["question", "answer", "prompt", "completion"]
        with pytest.raises(DataError, match=r"prompt_completion and question_answer both fit.*data\.format"):
            detect(columns, "auto", {}, "a.jsonl")
        assert detect(columns, "question_answer", {}, "a.jsonl").scheme.name == "question_answer"

    def test_columns_that_fit_nothing_are_listed_with_the_schemes(self) -> None:
        with pytest.raises(DataError) as caught:
            detect(["text", "label"], "auto", {}, "a.jsonl")
        message = str(caught.value)
        assert message.startswith("a.jsonl: no column scheme fits the columns found (label, text)")
        for part in (
            "prompt + completion",
            "instruction + output",
            "question + answer",
            "messages",
            "conversations",
        ):
            assert part in message
        assert "data.columns" in message
        assert "\n" not in message

    def test_names_in_other_case_get_a_mapping_proposed(self) -> None:
        with pytest.raises(DataError, match=r"data\.columns\.question=Question data\.columns\.answer=ANSWER"):
            detect(["Question", "ANSWER"], "auto", {}, "a.jsonl")

    def test_a_named_scheme_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"expected messages;"):
            detect(["question", "answer"], "messages", {}, "a.jsonl")

    def test_a_mapping_across_schemes_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"data\.columns maps question, completion, which no scheme has together"):
            detect(["a", "b"], "auto", {"question": "a", "completion": "b"}, "a.jsonl")


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"question": "Q"}, "answer", "is missing"),
        ({"question": "Q", "answer": None}, "answer", "holds null where text is expected"),
        ({"question": "Q", "answer": 72}, "answer", "holds the number 72 where text is expected"),
        ({"question": "Q", "answer": 10**400}, "answer", "holds the number of many digits where"),
        ({"question": True, "answer": "A"}, "question", "holds the truth value true where text is expected"),
        ({"question": ["Q"], "answer": "A"}, "question", "holds a list where text is expected"),
        ({"question": {"x": 1}, "answer": "A"}, "question", "holds an object where text is expected"),
        ({"question": "Q", "answer": b"A"}, "answer", "holds a value of type bytes where text is expected"),
        ({"question": " \n", "answer": "A"}, "question", "is empty"),
        ({"question": "Q", "answer": "A\0"}, "answer", "holds a NUL character"),
        ({"question": "Q", "answer": "\ud83d"}, "answer", "half of a character (\\ud83d)"),
    ],
)
def test_a_bad_field_is_named(row: dict[str, Any], field: str, message: str) -> None:
    error = fault(row, {"question": "", "answer": ""})
    assert error.field == field
    assert message in error.message


def test_an_empty_answer_is_its_own_kind_of_fault() -> None:
    assert fault({"question": "Q", "answer": " "}, {"question": "", "answer": ""}).fault == Fault.EMPTY_ANSWER
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]
    assert fault({"messages": turns}, CHAT).fault == Fault.EMPTY_ANSWER


S, U, A = ({"role": role, "content": "x"} for role in ("system", "user", "assistant"))


@pytest.mark.parametrize(
    ("turns", "field", "message"),
    [
        ([U], "messages", "the last one must be the assistant's answer"),
        ([U, A, U], "messages", "ends with a message of the user"),
        ([S], "messages", "ends with a message of the system"),
        ([A], "messages", "has no message of the user"),
        ([S, S, U, A], "messages[1]", "a second system message"),
        ([U, S, A], "messages[1]", "a system message after others"),
        ([], "messages", "is an empty list"),
        ("Q", "messages", "holds text where a list of messages is expected"),
        ("[{broken", "messages", "broken JSON"),
        (None, "messages", "holds null where a list of messages is expected"),
        ([U, "A"], "messages[1]", "holds text where an object is expected"),
        ([U, {"role": "assistant"}], "messages[1].content", "is missing"),
        ([U, {"content": "A"}], "messages[1].role", "is missing"),
        ([U, {"role": "assistant", "content": None}], "messages[1].content", "holds null"),
        ([U, {"role": "tool", "content": "A"}], "messages[1].role", "unknown role 'tool'"),
        ([U, {"role": "human", "content": "A"}], "messages[1].role", "unknown role 'human'"),
        ([{"role": "user", "content": ""}, A], "messages[0].content", "is empty"),
        ({"role": ["user"], "content": ["Q", "A"]}, "messages", "lists of different lengths"),
    ],
)
def test_a_bad_conversation_is_named(turns: object, field: str, message: str) -> None:
    error = fault({"messages": turns}, CHAT)
    assert (error.field, message in error.message) == (field, True), error.message
