"""Calls of tools, thinking, weights and system messages under templates of several families: what carries loss."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import encode, make_tokenizer

from lorahydra.data import ChatFormat, Example, Message
from lorahydra.data.chat.row_warnings import RowWarning
from lorahydra.errors import DataError

# The parts of the families' own templates that matter for tools.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last and enable_thinking is defined %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
        {{- message.tool_calls[0].function.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}{{- call.function | tojson }}{%- endfor %}{{- ']' + eos_token }}
    {%- else %}{{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
THINKING = CHAT_TEMPLATE.replace(
    "+ m['content'] +",
    "+ ('<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '') + m['content'] +",
)
IM = ("<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MISTRAL_TOKENS = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
KINDS: dict[str, dict[str, Any]] = {
    "qwen": {"special": IM, "template": QWEN},
    "llama": {"special": LLAMA_TOKENS, "bos": LLAMA_TOKENS[0], "eos": "<|eot_id|>", "template": LLAMA},
    "mistral": {"special": MISTRAL_TOKENS, "bos": "<s>", "eos": "</s>", "template": MISTRAL},
    "thinking": {"special": IM, "template": THINKING},
    "tiny": {"special": IM, "template": CHAT_TEMPLATE},
    "plain": {"special": ("</s>",), "eos": "</s>"},
}
CALLS = {
    "qwen": '<tool_call>\n{"name": "w", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
    "llama": '{"name": "w", "parameters": {"city": "Paris"}}<|eot_id|>',
    "mistral": '[TOOL_CALLS] [{"name": "w", "arguments": {"city": "Paris"}}]</s>',
}
ANSWERS = {"qwen": "22<|im_end|>", "llama": "22<|eot_id|>", "mistral": " 22</s>"}
TOOLS = json.dumps([{"type": "function", "function": {"name": "w"}}])


def call(name: str = "w", content: str = "", **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    return Message("assistant", content, json.dumps({"tool_calls": [{"type": "function", "function": function}]}))


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, thought: str = "", *, learned: bool = True) -> Message:
    return Message("assistant", text, json.dumps({"reasoning_content": thought}) if thought else "", learned)


TOOL = Message("tool", "Sunny, 22")
ASKED = (user("Weather?"), call(city="Paris"), TOOL)


def learned(kind: str, *messages: Message, tools: str = "", **options: Any) -> list[str]:
    """The texts that carry loss, one for each unbroken span."""
    tokenizer = make_tokenizer(**KINDS[kind])
    chat = ChatFormat(tokenizer, **options)
    example = Example(messages, 7, tools, "a.jsonl")
    [(ids, spans, *_)] = chat.encode_batch([example])
    assert ids[: len(chat.prompt_ids(example))] == chat.prompt_ids(example)
    assert spans[-1][0] == len(chat.prompt_ids(example))
    return [tokenizer.decode(ids[start:end]) for start, end in spans]


def rendered(kind: str, *messages: Message, tools: str = "", **options: Any) -> str:
    tokenizer = make_tokenizer(**KINDS[kind])
    text: str = tokenizer.decode(encode(ChatFormat(tokenizer, **options), Example(messages, 7, tools)).input_ids)
    return text


@pytest.mark.parametrize("kind", CALLS)
def test_calls_are_learnt_and_results_are_not(kind: str) -> None:
    assert learned(kind, *ASKED, answer("22")) == [CALLS[kind], ANSWERS[kind]]
    assert learned(kind, *ASKED[:2]) == [CALLS[kind]]
    assert learned(kind, user("a"), answer("22"), *ASKED, answer("22"), user("b"), answer("22")) == [
        *(ANSWERS[kind], CALLS[kind], ANSWERS[kind], ANSWERS[kind]),
    ]


def test_text_before_a_call_is_learnt_with_it() -> None:
    text = learned("qwen", user("Weather?"), call(content="Let me look.", city="Paris"), TOOL, answer("22"))
    assert text == ["Let me look.\n" + CALLS["qwen"], ANSWERS["qwen"]]


@pytest.mark.parametrize(
    ("kind", "messages", "what"),
    [
        ("tiny", ASKED[:2], "tool calls"),
        (
            "plain",
            (user("Weather?"), call(content="I call w with city and Paris."), TOOL, answer("A")),
            "tool calls",
        ),
        ("thinking", ASKED[:2], "tool calls"),
    ],
)
def test_a_template_without_a_place_for_calls_is_refused(kind: str, messages: tuple[Message, ...], what: str) -> None:
    with pytest.raises(
        DataError, match=rf"a\.jsonl:7: the model's chat template has no place for {what}.*chat_template"
    ):
        learned(kind, *messages)


def test_a_template_that_leaves_results_out_is_refused() -> None:
    tokenizer = make_tokenizer(
        IM, template="{% for m in messages if m.role != 'tool' %}" + CHAT_TEMPLATE.partition("%}")[2]
    )
    with pytest.raises(DataError, match="has no place for tool results"):
        encode(ChatFormat(tokenizer), Example((user("Q"), answer("A"), TOOL, answer("B")), 7))


def test_a_template_that_drops_the_text_beside_a_call_is_refused() -> None:
    with pytest.raises(DataError, match="changes an answer of this conversation"):
        learned("llama", user("Weather?"), call(content="Let me look.", city="Paris"), TOOL, answer("A"))


def test_tools_are_passed_to_the_template_or_counted() -> None:
    assert '"name": "w"' in rendered("qwen", user("Q"), answer("A"), tools=TOOLS)
    chat = ChatFormat(make_tokenizer(**KINDS["tiny"]))
    example = Example((user("Q"), answer("A")), 7, TOOLS)
    assert chat.encode_batch([example])[0].lost == (RowWarning.NO_TOOLS,)
    chat = ChatFormat(make_tokenizer(**KINDS["qwen"]))
    assert chat.encode_batch([example])[0].lost == ()


def test_thinking_is_learnt_where_the_template_puts_it_before_the_answer_and_counted_elsewhere() -> None:
    messages = (user("Q"), answer("A", "hm"), user("P"), answer("B", "ha"))
    assert learned("thinking", *messages) == ["A<|im_end|>", "<think>ha</think>B<|im_end|>"]
    assert learned("thinking", user("Q"), answer("A", "hm")) == ["<think>hm</think>A<|im_end|>"]
    for kind in ("tiny", "qwen"):
        chat = ChatFormat(make_tokenizer(**KINDS[kind]))
        assert chat.encode_batch([Example(messages, 7)])[0].lost == (RowWarning.NO_THINKING,)
        assert "h" not in learned(kind, *messages)[-1]


@pytest.mark.parametrize("kind", ["tiny", "qwen", "plain"])
def test_answers_of_weight_0_carry_no_loss(kind: str) -> None:
    messages = (user("Q"), answer("bad", learned=False), user("P"), answer("good"))
    [only] = learned(kind, *messages)
    assert only.startswith("good")
    assert "bad" in rendered(kind, *messages)


class TestEmptySystemMessage:
    @pytest.mark.parametrize("kind", ["qwen", "tiny"])
    def test_it_stays_empty(self, kind: str) -> None:
        for text in (
            rendered(kind, Message("system", ""), user("Q"), answer("A"), system_prompt="Be brief."),
            rendered(kind, user("Q"), answer("A"), system_prompt=""),
        ):
            assert text.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\nQ")
        assert "You are Qwen." in rendered("qwen", user("Q"), answer("A"))

    def test_templates_without_system_messages_have_none_anyway(self) -> None:
        refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
        chat = ChatFormat(make_tokenizer(IM, template=refusing), system_prompt="")
        assert chat.prompt_ids(Example((Message("system", " "), user("Q"), answer("A")), 1))
        assert rendered("plain", user("Q"), answer("A"), system_prompt="").startswith("### User:")
