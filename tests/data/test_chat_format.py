"""Chat formatting: what the model sees and which tokens carry loss, under templates of many kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import encode, make_tokenizer, reference

from lorahydra.data import PLAIN_TEMPLATE, ChatFormat, Example, Message
from lorahydra.errors import DataError, ModelError

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The parts of Qwen3's template that matter here: thinking is dropped from earlier answers, and an empty
# thinking block is put before the last one and, with enable_thinking=False, into the generation prompt.
QWEN3 = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role != 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- else %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# No end of turn: the next speaker's token ends it.
GLM = (
    "[gMASK]<sop>"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The generation prompt holds more than the history does, as with models that always think.
THINKER = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GLM_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>")

KINDS: dict[str, dict[str, Any]] = {
    "tiny": {"special": IM, "template": CHAT_TEMPLATE},
    "smollm": {"special": IM, "bos": "<|im_start|>", "template": SMOLLM},
    "qwen3": {"special": IM, "template": QWEN3},
    "llama3": {"special": LLAMA_TOKENS, "bos": LLAMA_TOKENS[0], "eos": "<|eot_id|>", "template": LLAMA3},
    "mistral": {"special": ("<s>", "</s>"), "bos": "<s>", "eos": "</s>", "template": MISTRAL},
    "gemma": {
        "special": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "bos": "<bos>",
        "eos": "<eos>",
        "template": GEMMA,
    },
    "glm": {"special": GLM_TOKENS, "eos": "<|endoftext|>", "template": GLM},
    "thinker": {"special": IM, "template": THINKER},
    "plain": {"special": ("</s>",), "eos": "</s>"},
    "plain with bos": {"special": ("<s>", "</s>"), "bos": "<s>", "eos": "</s>", "adds_bos": True},
}
END = {
    "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>", "glm": "<|endoftext|>",
    "plain": "</s>", "plain with bos": "</s>",
}  # fmt: skip


def conversation(*texts: str, line: int = 1) -> Example:
    """User and assistant in turn, the user first; `S:` begins a system message."""
    system = [Message("system", texts[0][2:])] if texts[0].startswith("S:") else []
    turns = zip(["user", "assistant"] * len(texts), texts[len(system) :], strict=False)
    return Example((*system, *(Message(role, text) for role, text in turns)), line)


def learned(chat: ChatFormat, tokenizer: Any, example: Example) -> list[str]:
    """The texts that carry loss, one for each unbroken span."""
    encoded = encode(chat, example)
    assert len(encoded.input_ids) == len(encoded.labels)
    spans: list[list[int]] = []
    before = -100
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (-100, token)
        if label != -100:
            if before == -100:
                spans.append([])
            spans[-1].append(token)
        before = label
    return [tokenizer.decode(span) for span in spans]


def as_dicts(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.messages]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Paris.", "Grüße 😀\n\nzweite Zeile", "<b>{{ x }}</b> {% if %}", "Capital"])
def test_the_last_answer_and_its_end_are_learned_after_the_very_prompt(kind: str, answer: str) -> None:
    tokenizer = make_tokenizer(**KINDS[kind])
    chat = ChatFormat(tokenizer)
    example = conversation("Capital of France?", answer)
    encoded = encode(chat, example)
    prompt = chat.prompt_ids(example)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [-100] * len(prompt)
    [text] = learned(chat, tokenizer, example)
    # Mistral's template has a space before the answer that is not in the generation prompt.
    assert text == (" " if kind == "mistral" else "") + answer + END.get(kind, "<|im_end|>")
    assert encoded.labels[len(prompt)] != -100


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "plain" not in kind])
@pytest.mark.parametrize("texts", [("Q", "A"), ("Q", "A", "Q", "A"), ("Q", "A", "Why?", "Because A", "Q", "B")])
def test_the_prompt_is_the_one_that_transformers_makes(kind: str, texts: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer(**KINDS[kind])
    example = conversation(*texts)
    expected = tokenizer.apply_chat_template(
        as_dicts(example)[:-1], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert ChatFormat(tokenizer).prompt_ids(example) == expected


@pytest.mark.parametrize("kind", ["tiny", "smollm", "qwen3", "llama3", "gemma"])
def test_the_whole_is_what_transformers_makes(kind: str) -> None:
    tokenizer = make_tokenizer(**KINDS[kind])
    example = conversation("Q", "A", "Why?", "Because A")
    expected = tokenizer.apply_chat_template(as_dicts(example), return_dict=False)
    assert encode(ChatFormat(tokenizer), example).input_ids == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_of_a_long_conversation_is_learned(kind: str) -> None:
    tokenizer = make_tokenizer(**KINDS[kind])
    # Answers that repeat each other, the question and the template must not be mistaken.
    example = conversation("A", "A", "user\nA", "assistant\nA", "B", "A")
    end = END.get(kind, "<|im_end|>")
    earlier = "<|user|>" if kind == "glm" else end
    last = f" A{end}" if kind == "mistral" else f"A{end}"
    assert learned(ChatFormat(tokenizer), tokenizer, example) == [
        f"A{earlier}",
        f"assistant\nA{earlier}",
        last,
    ]


def test_no_second_bos() -> None:
    for kind in ("llama3", "mistral", "gemma", "plain with bos"):
        tokenizer = make_tokenizer(**{**KINDS[kind], "adds_bos": True})
        ids = encode(ChatFormat(tokenizer), conversation("Q", "A")).input_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id


def test_a_token_across_the_border_is_not_made() -> None:
    # A tokenizer that would join the end of the generation prompt with the start of the answer.
    tokenizer = make_tokenizer(IM, merges=[("Ċ", "P"), ("P", "a")], template=CHAT_TEMPLATE)
    joined = tokenizer.apply_chat_template(as_dicts(conversation("Q", "Paris")), return_dict=False)
    encoded = encode(ChatFormat(tokenizer), conversation("Q", "Paris"))
    assert encoded.input_ids != joined
    assert tokenizer.decode(encoded.input_ids) == tokenizer.decode(joined)
    [text] = learned(ChatFormat(tokenizer), tokenizer, conversation("Q", "Paris"))
    assert text == "Paris<|im_end|>"
    # An earlier answer stands in the prompt, where generation sees it joined: no loss on the joined token.
    assert learned(ChatFormat(tokenizer), tokenizer, conversation("Q", "Paris", "Q", "x"))[0] == "aris<|im_end|>"


def make_sentencepiece_tokenizer() -> Any:
    """A tokenizer like Llama 2's: a space belongs to the next word, and one begins every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "▁", *"[]/INSTABQ", "▁A", "▁[", "AB", "▁AB"]
    vocab = {name: number for number, name in enumerate(names)}
    merges = [("▁", "A"), ("▁", "["), ("A", "B"), ("▁A", "B")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=MISTRAL
    )


def test_no_space_is_made_up_where_the_answer_begins() -> None:
    tokenizer = make_sentencepiece_tokenizer()
    chat, example = ChatFormat(tokenizer), conversation("Q", "AB", "Q", "AB")
    encoded = encode(chat, example)
    whole = tokenizer.apply_chat_template(as_dicts(example), return_dict=False)
    assert encoded.input_ids == whole
    # Both answers are the same token, the space before them in it, and both carry loss.
    answers = [tokenizer.convert_tokens_to_ids(token) for token in ("▁AB", "</s>")]
    assert [label for label in encoded.labels if label != -100] == answers * 2


def test_special_tokens_inside_texts_do_not_move_the_spans() -> None:
    tokenizer = make_tokenizer(**KINDS["tiny"])
    example = conversation("<|im_end|>x", "a<|im_end|>\nb", "<|im_start|>assistant\nfake", "c<|im_end|>")
    assert learned(ChatFormat(tokenizer), tokenizer, example) == [
        "a<|im_end|>\nb<|im_end|>",
        "c<|im_end|><|im_end|>",
    ]


@pytest.mark.parametrize("text", [" padded \n", "\n\nlead", "trail\n"])
def test_a_template_that_trims_answers_is_followed(text: str) -> None:
    tokenizer = make_tokenizer(**KINDS["llama3"])
    example = conversation("Q", text, "Q", text)
    assert learned(ChatFormat(tokenizer), tokenizer, example) == [f"{text.strip()}<|eot_id|>"] * 2


class TestThinking:
    def test_thinking_in_earlier_answers_is_dropped_as_the_template_does(self) -> None:
        tokenizer = make_tokenizer(**KINDS["qwen3"])
        example = conversation("Q", "<think>\nhm\n</think>\n\nA", "Q", "B")
        assert learned(ChatFormat(tokenizer), tokenizer, example) == ["A<|im_end|>", "B<|im_end|>"]

    def test_thinking_in_the_last_answer_that_the_template_rewrites_is_refused(self) -> None:
        chat = ChatFormat(make_tokenizer(**KINDS["qwen3"]))
        with pytest.raises(DataError, match=r"a\.jsonl:7: the model's chat template changes an answer"):
            chat.encode_batch([replace(conversation("Q", "<think>hm</think>A", line=7), source="a.jsonl")])

    def test_a_generation_prompt_that_history_lacks_is_trained_with(self) -> None:
        tokenizer = make_tokenizer(**KINDS["thinker"])
        ids = encode(ChatFormat(tokenizer), conversation("Q", "A")).input_ids
        assert tokenizer.decode(ids) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\nA<|im_end|>\n"


class TestSystemPrompt:
    def test_it_is_put_before_conversations_without_one(self) -> None:
        tokenizer = make_tokenizer(**KINDS["tiny"])
        chat = ChatFormat(tokenizer, system_prompt="Be brief.")
        assert tokenizer.decode(chat.prompt_ids(conversation("Q", "A"))) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt = chat.prompt_ids(conversation("S:Own.", "Q", "A"))
        assert "Own." in tokenizer.decode(prompt)
        assert "brief" not in tokenizer.decode(prompt)

    @pytest.mark.parametrize("kind", ["gemma", "mistral"])
    def test_a_template_that_refuses_it_is_named_in_one_line(self, kind: str) -> None:
        chat = ChatFormat(make_tokenizer(**KINDS[kind]), system_prompt="Be brief.")
        with pytest.raises(
            DataError, match=r"line 4: the model's chat template refuses .*unset data\.system_prompt"
        ) as caught:
            encode(chat, conversation("Q", "A", line=4))
        assert "\n" not in str(caught.value)

    def test_roles_that_a_template_refuses_are_named_by_line(self) -> None:
        chat = ChatFormat(make_tokenizer(**KINDS["gemma"]))
        example = Example((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), 9, source="a.jsonl")
        with pytest.raises(DataError, match=r"a\.jsonl:9: .*must alternate"):
            chat.encode_batch([conversation("Q", "A"), example])


class TestTemplate:
    def test_the_plain_one_is_used_and_said(self) -> None:
        tokenizer = make_tokenizer(("</s>",), eos="</s>")
        chat = ChatFormat(tokenizer)
        assert chat.is_plain
        assert tokenizer.decode(encode(chat, conversation("S:Be brief.", "Q", "A", "P", "B")).input_ids) == (
            "### System:\nBe brief.\n\n### User:\nQ\n\n### Assistant:\nA</s>\n\n### User:\nP\n\n### Assistant:\nB</s>"
        )

    def test_the_models_own_is_not_plain(self) -> None:
        assert not ChatFormat(make_tokenizer(**KINDS["tiny"])).is_plain

    @pytest.mark.parametrize("file", ["utf-8", "utf-8-sig", "utf-16", None])
    def test_a_given_one_replaces_the_models(self, file: str | None, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_text(PLAIN_TEMPLATE, file)
        tokenizer = make_tokenizer(**KINDS["tiny"])
        chat = ChatFormat(tokenizer, chat_template=str(tmp_path / "t.jinja") if file else PLAIN_TEMPLATE)
        assert not chat.is_plain
        assert tokenizer.decode(chat.prompt_ids(conversation("Q", "A"))) == "### User:\nQ\n\n### Assistant:\n"

    def test_an_answer_without_an_end_gets_the_eos_token(self) -> None:
        tokenizer = make_tokenizer(IM)
        template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        chat = ChatFormat(tokenizer, chat_template=template)
        # Nor a generation prompt, so that the model has to say whose turn it is.
        assert learned(chat, tokenizer, conversation("Q", "A")) == ["assistant: A<|im_end|>"]

    def test_todays_date_does_not_change_the_tokens(self) -> None:
        tokenizer = make_tokenizer(IM, template="{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
        assert tokenizer.decode(ChatFormat(tokenizer).prompt_ids(conversation("Q", "A"))).startswith(
            "26 Jul 2024<|im_st"
        )

    @pytest.mark.parametrize(
        ("template", "pattern"),
        [
            ("{% for m in messages %}", "the chat template is broken: "),
            ("{{ messages.nothing.here }}", "the chat template is broken: "),
            ("{{ messages[0]['content'] + 1 }}", "the chat template is broken: "),
            ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "must print the assistant's text exactly once"),
            (
                "{{ messages[-1]['content'] }}{{ messages[-1]['content'] }}",
                "must print the assistant's text exactly once",
            ),
            ("no-such-file.jinja", r"model\.chat_template=no-such-file\.jinja is neither a file nor Jinja"),
        ],
    )
    def test_a_broken_one_is_named_at_once(self, template: str, pattern: str) -> None:
        with pytest.raises(ModelError, match=pattern) as caught:
            ChatFormat(make_tokenizer(IM), chat_template=template)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_bytes(b"\xff\xff")
        with pytest.raises(ModelError, match="is not UTF-8 text"):
            ChatFormat(make_tokenizer(IM), chat_template=str(tmp_path / "t.jinja"))

    def test_several_templates_without_a_default_are_refused(self) -> None:
        tokenizer = make_tokenizer(IM)
        tokenizer.chat_template = {"a": CHAT_TEMPLATE, "b": CHAT_TEMPLATE}
        with pytest.raises(ModelError, match="several chat templates"):
            ChatFormat(tokenizer)
        tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "{{ x }}"}
        assert encode(ChatFormat(tokenizer), conversation("Q", "A"))


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        ChatFormat(make_tokenizer(eos=None, template=CHAT_TEMPLATE))


def test_the_fingerprint_tells_what_changes_tokens_and_nothing_else() -> None:
    tokenizer = make_tokenizer(**KINDS["tiny"])
    first = ChatFormat(tokenizer).fingerprint
    assert first == ChatFormat(make_tokenizer(**KINDS["tiny"])).fingerprint
    tokenizer.pad_token = "<|im_end|>"
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=8)
    tokenizer.padding_side = "left"
    padded = make_tokenizer(**KINDS["tiny"])
    padded.pad_token = "<|im_end|>"
    assert ChatFormat(tokenizer).fingerprint == ChatFormat(padded).fingerprint
    others = [
        ChatFormat(padded, system_prompt="x"),
        ChatFormat(padded, chat_template=SMOLLM),
        ChatFormat(make_tokenizer(IM, merges=[("a", "b")], template=CHAT_TEMPLATE)),
    ]
    assert len({first, *(chat.fingerprint for chat in others)}) == 4


def test_texts_for_people() -> None:
    chat = ChatFormat(make_tokenizer(**KINDS["tiny"]))
    assert chat.prompt_text(conversation("Q", "A")) == "Q"
    assert chat.prompt_text(conversation("S:Be brief.", "Q", "A", "P", "B")) == (
        "system: Be brief.\nuser: Q\nassistant: A\nuser: P"
    )
    assert reference(chat, conversation("Q", "A", "P", " B\n")) == "B", "as a model says it"


def test_the_length_limit_of_a_tokenizer_is_not_applied(recwarn: pytest.WarningsRecorder) -> None:
    tokenizer = make_tokenizer(**KINDS["tiny"])
    tokenizer.model_max_length = 8
    assert len(encode(ChatFormat(tokenizer), conversation("Q" * 500, "A" * 500)).input_ids) > 1000
    assert not recwarn.list
