"""A Modelfile that Ollama's rules accept, whose template renders what the chat template does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.modelfiles import parse, render
from tests.support.models import CHAT_TEMPLATE, write_byte_tokenizer

from lorahydra.adapters.go_template import derive_template
from lorahydra.adapters.ollama import export_ollama, modelfile
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.examples import Example, Message
from lorahydra.errors import ModelError, UserError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = CHAT_TEMPLATE.replace(
    "assistant\n' }}", "assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n\n') }}"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | "
    "trim + '<|eot_id|>' %}{{ ('<|begin_of_text|>' if loop.first else '') + text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + "
    "(first if loop.first else '') + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ '<s>' }}{% for m in rest %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (system + '\n\n' if loop.last and system else '') + m['content'] + "
    "'[/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
BRACES = CHAT_TEMPLATE.replace("<|im_start|>", "{" + "{start}}")
TEMPLATES = {
    "ChatML": CHAT_TEMPLATE,
    "SmolLM2": SMOLLM2,
    "Qwen3": QWEN3,
    "Llama 3": LLAMA3,
    "Gemma": GEMMA,
    "Mistral": MISTRAL,
    "braces": BRACES,
    "plain": None,
}
TALKS = [["Hi"], ["Hi", "Hello.\n\nYes?", "What is {{ x }}?"], ["a", "b", "c", "d", "e"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder, None)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_template_renders_the_same(tokenizer: Any, kind: str) -> None:
    chat = ChatFormat(tokenizer, chat_template=TEMPLATES[kind])
    template = derive_template(chat)
    for turns in TALKS:
        for system in ("", "Be brief."):
            messages = [{"role": "system", "content": system}] if system else []
            messages += [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns)]
            asked = (*(Message(m["role"], m["content"]) for m in messages), Message("assistant", ""))
            assert render(template, messages) == chat.rendered_prompt(Example(asked, line=0))


def test_a_token_that_ollama_adds_itself(tokenizer: Any) -> None:
    chat = ChatFormat(tokenizer, chat_template=LLAMA3)
    assert render(derive_template(chat, "<|begin_of_text|>"), [{"role": "user", "content": "Hi"}]).startswith(
        "<|start_header_id|>user"
    )
    with pytest.raises(ModelError, match="cannot be written as a template of Ollama"):
        derive_template(ChatFormat(tokenizer, chat_template=CHAT_TEMPLATE.replace("m['role']", "loop.index | string")))


def test_a_merged_model(tiny_adapter: Path, tmp_path: Path) -> None:
    export_ollama(tiny_adapter, tmp_path / "Mine", merged=True)
    file = parse((tmp_path / "Mine" / "Modelfile").read_text("utf-8"))
    assert file.values.keys() == {"FROM", "TEMPLATE", "SYSTEM"}
    assert (file.values["FROM"], file.values["SYSTEM"]) == ("./model.gguf", "Be brief.")
    assert file.parameters == {
        "temperature": [0.0],
        "repeat_penalty": [1.0],
        "stop": ["<|im_start|>", "<|im_end|>"],
    }
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(file.values["TEMPLATE"], asked) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert sorted(entry.name for entry in (tmp_path / "Mine").iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    assert "ollama create mine -f Modelfile" in (tmp_path / "Mine" / "README.md").read_text("utf-8")


def test_an_adapter(tiny_adapter: Path, tmp_path: Path) -> None:
    export_ollama(tiny_adapter, tmp_path / "both")
    file = parse((tmp_path / "both" / "Modelfile").read_text("utf-8"))
    assert (file.values["FROM"], file.values["ADAPTER"]) == ("./base.gguf", "./adapter.gguf")
    assert (tmp_path / "both" / "base.gguf").is_file()
    export_ollama(tiny_adapter, tmp_path / "Mine alone, é=1", from_model="tiny:1b")
    file = parse((tmp_path / "Mine alone, é=1" / "Modelfile").read_text("utf-8"))
    assert file.values["FROM"] == "tiny:1b"
    assert not (tmp_path / "Mine alone, é=1" / "base.gguf").exists()
    card = (tmp_path / "Mine alone, é=1" / "README.md").read_text("utf-8")
    assert "ollama run mine-alone-1\n" in card, "a name that Ollama takes"


def test_what_a_modelfile_cannot_hold(tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one without spaces"):
        modelfile("two words", None, "", None, [])
    folder = shutil.copytree(tiny_adapter, tmp_path / "odd")
    metadata = json.loads((folder / "lorahydra.json").read_text("utf-8"))
    (folder / "lorahydra.json").write_text(json.dumps(metadata | {"system_prompt": 'Say """.'}), "utf-8")
    with pytest.raises(ModelError, match="three quotation marks"):
        export_ollama(folder, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()
