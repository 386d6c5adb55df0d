"""Column schemes: detection, mapping, and strict conversion of rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorahydra.data.columns import detect
from lorahydra.data.examples import Message, example_keys
from lorahydra.data.problems import Fault, RowError
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
        {"conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]},
        {"question": "Q", "answer": "A", "system": " ", "history": None, "tools": ""},
        {"instruction": "Q", "output": "A", "history": "[]", "tools": "[]"},
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
    assert layout.ignored == set()
    row["messages"][2] |= {"name": "Bob", "weight": 0}
    row["messages"][1] |= {"weight": 0, "audio": []}
    layout.messages(row)
    assert layout.ignored == {"messages[].name"}


def test_columns_are_mapped() -> None:
    assert convert({"q": "Q", "a": "A"}, question="q", answer="a") == [USER, ASSISTANT]
    assert convert({"q": "Q", "answer": "A"}, question="q") == [USER, ASSISTANT]
    assert convert({"input": "Q", "output": "A"}, instruction="input") == [USER, ASSISTANT], "the input is not added"


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
        with pytest.raises(DataError, match=r"data\.columns maps columns of different schemes: question, completion"):
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
        ([U, A, U], "messages", "ends with a user message"),
        ([S], "messages", "ends with a system message"),
        ([A], "messages", "has no user message"),
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
        ([U, {"role": "tools", "content": "A"}], "messages[1].role", "unknown role 'tools'"),
        (
            [U, {"role": "assistant", "content": "A", "weight": 0.5}],
            "messages[1].weight",
            "0.5 where 0 or 1 is expected",
        ),
        ([U, {"role": "assistant", "content": "A", "train": "no"}], "messages[1].train", "text where 0 or 1 is"),
        ([U, {"role": "assistant", "content": "A", "weight": 0}], "messages", "every answer has the weight 0"),
        ([U, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0]", "does not name a function"),
        ([U, {"role": "assistant", "tool_calls": "w"}], "messages[1].tool_calls", "broken JSON"),
        ([U, {"role": "assistant", "content": "", "tool_calls": []}], "messages[1].content", "is empty"),
        (
            [U, {"role": "assistant", "tool_calls": [{"name": "w", "arguments": "[1]"}]}],
            "messages[1].tool_calls[0].arguments",
            "holds a list where an object is expected",
        ),
        ([U, {"role": "human", "content": "A"}], "messages[1].role", "unknown role 'human'"),
        ([{"role": "user", "content": ""}, A], "messages[0].content", "is empty"),
        ({"role": ["user"], "content": ["Q", "A"]}, "messages", "lists of different lengths"),
    ],
)
def test_a_bad_conversation_is_named(turns: object, field: str, message: str) -> None:
    error = fault({"messages": turns}, CHAT)
    assert (error.field, message in error.message) == (field, True), error.message


class TestAround:
    """Columns beside a question and its answer, or beside a conversation."""

    def test_system_and_history_become_messages(self) -> None:
        for history in ([["1", "2"], ["3", "4"]], '[["1", "2"], ["3", "4"]]'):
            row = {"instruction": "Q", "input": "I", "output": "A", "system": "S", "history": history}
            assert convert(row) == [
                *[("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")],
                *[("user", "Q\n\nI"), ASSISTANT],
            ]
        assert convert({**CHAT, "system": "S"}) == [("system", "S"), USER, ASSISTANT]
        assert convert({"q": "Q", "answer": "A", "sys": "S"}, question="q", system="sys")[0] == ("system", "S")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"history": "earlier"}, "broken JSON"),
            ({"history": [["1"]]}, "where a pair of question and answer is expected"),
            ({"history": [["1", " "]]}, "the text of the assistant is empty"),
            ({"tools": {"name": "w"}}, "holds an object where a list of tools is expected"),
            ({"tools": "[1]"}, "holds the number 1 where the description of a tool is expected"),
            ({"system": 1}, "holds the number 1 where text is expected"),
        ],
    )
    def test_what_is_in_them_is_checked_with_a_way_out(self, row: dict[str, Any], message: str) -> None:
        row = {"question": "Q", "answer": "A", **row}
        layout = detect(row, "auto", {}, "a")
        with pytest.raises(RowError, match="leaves the column out") as caught:
            layout.messages(row)
            layout.tools(row)
        assert message in caught.value.message
        [name] = set(row) - {"question", "answer"}
        assert convert(row, **{name: "none"}) == [USER, ASSISTANT]

    def test_a_conversation_has_one_system_message(self) -> None:
        chat = {"messages": [{"role": "system", "content": "S"}, *CHAT["messages"]]}
        assert convert({**chat, "system": "S"}) == [("system", "S"), USER, ASSISTANT]
        error = fault({**chat, "system": "T"}, {**CHAT, "system": ""})
        assert "a system message that differs from the column's" in error.message

    def test_an_empty_system_message_is_one(self) -> None:
        assert convert({"messages": [{"role": "system", "content": ""}, *CHAT["messages"]]})[0] == ("system", "")


class TestMessageKeys:
    def test_answers_of_weight_0_carry_no_loss_and_none_is_the_last(self) -> None:
        turns = [{**U, "weight": 0}, {**A, "weight": 0}, U, {**A, "weight": 1}, U, {**A, "train": False}]
        layout = detect(CHAT, "auto", {}, "a")
        messages = layout.messages({"messages": turns})
        assert [message.learned for message in messages] == [True, False, True, True]
        assert (layout.cut, layout.ignored) == (1, set())

    @pytest.mark.parametrize(
        "keys",
        [
            {"tool_calls": [{"id": "1", "function": {"name": "w", "arguments": '{"city": "Paris"}'}}]},
            {"tool_calls": '[{"id": "1", "name": "w", "arguments": {"city": "Paris", "unit": null}}]'},
        ],
    )
    def test_calls_of_tools_are_what_templates_expect(self, keys: dict[str, Any]) -> None:
        turns = [U, {"role": "assistant", "content": None, **keys}, {"role": "tool", "content": "22", "name": "w"}, A]
        messages = detect(CHAT, "auto", {}, "a").messages({"messages": turns})
        call = {"type": "function", "id": "1", "function": {"name": "w", "arguments": {"city": "Paris"}}}
        assert (messages[1].content, messages[1].fields) == ("", {"tool_calls": [call]})
        assert (messages[2].role, messages[2].fields) == ("tool", {"name": "w"})

    def test_sharegpt_writes_a_call_as_a_turn(self) -> None:
        turns = [
            ("human", "x"),
            ("function_call", '{"name": "w", "arguments": {}}'),
            ("observation", "22"),
            ("gpt", "A"),
        ]
        row = {
            "conversations": [{"from": speaker, "value": text} for speaker, text in turns],
            "tools": '[{"name": "w"}]',
        }
        layout = detect(row, "auto", {}, "a")
        messages = layout.messages(row)
        assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant"]
        assert messages[1].fields["tool_calls"][0]["function"] == {"name": "w", "arguments": {}}
        assert layout.tools(row) == '[{"name":"w"}]'

    def test_all_that_decides_what_is_learnt_is_part_of_the_key(self) -> None:
        question, answer = Message("user", "Q"), Message("assistant", "A")
        keys = [
            example_keys((question, answer)),
            example_keys((question, answer), "[]"),
            example_keys((question, Message("assistant", "A", extras="{}"))),
            example_keys((Message("user", "Q", extras="{}"), answer)),
            example_keys((Message("user", "Q", learned=False), answer)),
        ]
        assert len({key.example for key in keys}) == 5
        assert keys[0].example.hex() == "bb4917414eb44b39a2b88e9ec267dc55"
        # The prompt does not depend on what carries loss.
        assert [keys[0].prompt == key.prompt for key in keys] == [True, False, True, False, True]
