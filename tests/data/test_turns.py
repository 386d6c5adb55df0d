"""What ends an answer under templates of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.data.conftest import encode, make_tokenizer, reference
from tests.data.test_chat_format import IM, KINDS, conversation

from lorahydra.data import ChatFormat
from lorahydra.data.chat.turns import TextEnd

ALPACA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}"
    "{% else %}{{ 'USER: ' + m.content + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# "Answer:" begins an answer, and may well stand inside of one.
QA = (
    "{% for m in messages %}{{ ('Answer: ' if m.role == 'assistant' else 'Question: ') + m.content + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
# As gpt-oss: an answer is a channel, its thinking another one with an end of its own.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
CHANNEL_TOKENS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|eos|>")
# As Llama 3.1: a call of a tool ends with another token than an answer.
TOOLS = (
    "{% for m in messages %}{{ '<|h|>' + m.role + '\n' }}{% if m.tool_calls %}"
    "{{ m.tool_calls[0].function.arguments | tojson + '<|eom|>' }}{% else %}{{ m.content + '<|eot|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant\n' }}{% endif %}"
)
TOOL_TOKENS = ("<|h|>", "<|eom|>", "<|eot|>", "<|eos|>")
MORE: dict[str, dict[str, Any]] = {
    "alpaca": {"special": ("</s>",), "eos": "</s>", "template": ALPACA},
    "vicuna": {"special": ("</s>",), "eos": "</s>", "template": VICUNA},
    "zephyr": {"special": ("</s>",), "eos": "</s>", "template": ZEPHYR},
    "qa": {"special": ("</s>",), "eos": "</s>", "template": QA},
    "channels": {"special": CHANNEL_TOKENS, "eos": "<|eos|>", "template": CHANNELS},
    "tools": {"special": TOOL_TOKENS, "eos": "<|eos|>", "template": TOOLS},
    "qwen base": {**KINDS["qwen3"], "special": (*IM, "<|endoftext|>"), "eos": "<|endoftext|>"},
}
ENDS = {
    "qwen base": {"<|im_end|>", "<|im_start|>", "<|endoftext|>"},
    "llama3": {"<|eot_id|>", "<|start_header_id|>"},
    "gemma": {"<end_of_turn>", "<start_of_turn>", "<eos>"},
    # No end of its own: the next speaker's token ends it.
    "glm": {"<|user|>", "<|endoftext|>"},
    "plain": {"</s>"},
    "channels": {"<|return|>", "<|eos|>"},
    "tools": {"<|eot|>", "<|h|>", "<|eom|>", "<|eos|>"},
}
TEXTS = {
    "qwen base": (),
    "llama3": (),
    "glm": (),
    "plain": ("\n### User:", "\n### Assistant:"),
    "mistral": ("[INST]", "[/INST]"),
    "alpaca": ("\n### Instruction:", "\n### Response:"),
    "vicuna": ("\nUSER:", " USER:"),
    "zephyr": ("<|user|>", "<|assistant|>"),
    "qa": ("\nQuestion:",),
}


@pytest.mark.parametrize("kind", ENDS)
def test_tokens_that_end_an_answer(kind: str) -> None:
    tokenizer = make_tokenizer(**(KINDS | MORE)[kind])
    chat = ChatFormat(tokenizer)
    assert set(tokenizer.convert_ids_to_tokens(list(chat.end_tokens))) == ENDS[kind]


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_end_an_answer(kind: str) -> None:
    assert ChatFormat(make_tokenizer(**(KINDS | MORE)[kind])).end_texts == TEXTS[kind]


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_what_is_learnt_last_ends_generation(kind: str) -> None:
    chat = ChatFormat(make_tokenizer(**(KINDS | MORE)[kind]))
    for example in (conversation("Q", "A"), conversation("Q", "A", "P", "B")):
        learnt = [token for token in encode(chat, example).labels if token != -100]
        assert learnt[-1] in chat.end_tokens
        # The channel's name is learnt, too.
        assert reference(chat, example).removeprefix("final") == example.messages[-1].content


def test_a_turns_mark_that_is_not_special_ends_it() -> None:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(("</s>",), eos="</s>", template=KINDS["tiny"]["template"])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in IM])
    chat = ChatFormat(tokenizer)
    assert set(tokenizer.convert_ids_to_tokens(list(chat.end_tokens))) == {*IM, "</s>"}
    encoded = encode(chat, conversation("Q<|im_end|>", "A"))
    assert [label for label in encoded.labels if label != -100] == tokenizer.convert_tokens_to_ids(["A", "<|im_end|>"])
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2


class TestTextEnd:
    def make(self, *texts: str, merges: tuple[tuple[str, str], ...] = ()) -> tuple[Any, TextEnd]:
        tokenizer = make_tokenizer(("</s>",), eos="</s>", merges=merges)
        return tokenizer, TextEnd(tokenizer, texts)

    def ids(self, tokenizer: Any, text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("It is.\n\n### User:", "It is."),
            ("### User:", ""),
            ("Grüße 😀\n### User:", "Grüße 😀"),
            ("x" * 200 + "\n### User:", "x" * 200),
        ],
    )
    def test_an_answer_is_cut_before_the_text(self, text: str, kept: str) -> None:
        tokenizer, end = self.make("\n### User:")
        ids = self.ids(tokenizer, text)
        assert all(end(ids[:count]) is None for count in range(1, len(ids)))
        kept_tokens = end(ids)
        assert kept_tokens is not None
        assert tokenizer.decode(ids[:kept_tokens]).strip() == kept

    @pytest.mark.parametrize("text", ["See ### User:", "### User", "A user: he", "User:", "#### User:"])
    def test_other_text_goes_on(self, text: str) -> None:
        tokenizer, end = self.make("\n### User:")
        ids = self.ids(tokenizer, text)
        assert all(end(ids[:count]) is None for count in range(1, len(ids) + 1))

    def test_a_token_that_holds_the_answers_end_and_a_line_break_stays(self) -> None:
        tokenizer, end = self.make("\n### User:", merges=(("Ċ", "Ċ"), (".", "ĊĊ")))
        ids = self.ids(tokenizer, "No.\n\n### User:")
        assert tokenizer.decode(ids[: end(ids)]).strip() == "No."
