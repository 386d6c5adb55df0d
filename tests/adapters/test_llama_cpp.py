"""A real llama.cpp gives the tokens of transformers from exported files; it runs where its server is installed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks.llama_cpp import DEMO, adapter_files, ask, serving
from tests.conftest import make_tiny_adapter
from tests.support.models import SMALL_SIZES, write_byte_tokenizer

from lorahydra.adapters.gguf_export import export_gguf
from lorahydra.inference.adapted_model import conversations, open_adapter
from lorahydra.modeling.gguf_tokenizer import LLAMA3, QWEN2, TEKKEN, add_tokenizer
from lorahydra.modeling.gguf_writing import write_model_gguf

SERVER = os.environ.get("LLAMA_CPP") or shutil.which("llama-server")
pytestmark = [
    pytest.mark.service,
    pytest.mark.slow,
    pytest.mark.skipif(SERVER is None, reason="llama.cpp's llama-server is not on PATH, and LLAMA_CPP is not set"),
]
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE | {"original_max_position_embeddings": 32}, "max_position_embeddings": 256},
    "mistral": {"sliding_window": None},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
}
ODD = [
    "I'm 25, you'RE 1234567; we'll see: 3.14 and 1,000!",
    "  leading,\ttabs\n\n\n  and   runs \r\n of space   ",
    "Привет, МИР! Ёлка №5, цена 1 200 ₽… Straße, naïve CamelCaseWord snake_case",
    "日本語テキスト 中文 한국어 😀👍🏽 /path/to//file?x=1&y=[2]",
]
PROMPTS = ["What is one and one?", "ab", "Назови цвет: 123 {x}\n\n  y"]


def make_model(folder: Path, kind: str, settings: dict[str, Any]) -> Path:
    """A model of two layers with random weights, whose tokenizer joins two letters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    vocabulary = write_byte_tokenizer(folder)
    backend = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    backend["model"]["vocab"]["ab"] = len(vocabulary)
    backend["model"]["merges"] = [["a", "b"]]
    (folder / "tokenizer.json").write_text(json.dumps(backend), "utf-8")
    torch.manual_seed(0)
    sizes = SMALL_SIZES | {"vocab_size": len(vocabulary) + 1, "initializer_range": 0.2, "bos_token_id": None}
    config = AutoConfig.for_model(kind, **sizes, **settings, eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_tokens(kind: str, tmp_path: Path) -> None:
    assert SERVER is not None
    adapter = make_tiny_adapter(make_model(tmp_path / "base", kind, MODELS[kind]), tmp_path / "trained")
    with open_adapter(adapter, device="cpu") as model:
        asked = conversations(PROMPTS)
        expected, ids = model.answer_tokens(asked), [model.prompt_ids(conversation) for conversation in asked]
        assert expected != model.answer_tokens(asked, tuned=False)
        text = model.base.tokenizer.decode(ids[-1])
    export_gguf(adapter, tmp_path / "merged", merged=True, dtype="float32")
    export_gguf(adapter, tmp_path / "pair", with_base=True, dtype="float32")
    for files in (["--model", str(tmp_path / "merged" / "model.gguf")], adapter_files(tmp_path / "pair")):
        with serving(SERVER, files) as address:
            assert ask(address, "/tokenize", content=text, add_special=True)["tokens"] == ids[-1]
            for prompt, answer in zip(ids, expected, strict=True):
                reply = ask(address, "/completion", prompt=prompt, temperature=0, n_predict=12, return_tokens=True)
                assert [token for token in reply["tokens"] if token not in (1, 2)] == answer


def by(regex: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def splitters() -> dict[str, tuple[Any, bool]]:
    """Ways to split text by llama.cpp's name, and whether words of the vocabulary are taken whole."""
    from tokenizers import pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    return {
        "gpt-2": (whole, False),
        "smollm": (digits, False),
        "qwen2": (by(QWEN2), False),
        "llama-bpe": (by(LLAMA3), True),
        "tekken": (by(TEKKEN), True),
    }


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"])
def test_tokens_of_any_text(kind: str, tmp_path: Path) -> None:
    """A tokenizer that is trained on the spot splits odd texts as llama.cpp does by the name in the file."""
    import gguf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    assert SERVER is not None
    splitter, takes_words = splitters()[kind]
    backend = Tokenizer(models.BPE(ignore_merges=takes_words))
    backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([DEMO.read_text("utf-8"), *ODD * 9], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL_SIZES | {"vocab_size": size}))
    options = {"chat_template": "{{ messages[0]['content'] }}", "stop": [1], "adds_bos": False}
    write_model_gguf(
        tmp_path / "m.gguf", model, "float32", "x", lambda writer: add_tokenizer(writer, tokenizer, size, **options)
    )
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.pre"].contents() == kind
    with serving(SERVER, ["--model", str(tmp_path / "m.gguf")]) as address:
        for text in ODD:
            assert ask(address, "/tokenize", content=text)["tokens"] == tokenizer(text)["input_ids"], text
