"""Base models of four families, tuned for a few rows: answers end where the template ends turns, whoever asks.

No family's end of turn is its tokenizer's end of sequence, as with pretrained models that borrow a template.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.conftest import encode, make_tokenizer, reference
from tests.data.test_chat_format import GEMMA, LLAMA3, QWEN3, conversation
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)

from lorahydra.adapters.export import export_adapter
from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.data import ChatFormat
from lorahydra.errors import DataError
from lorahydra.inference.adapted_model import AdaptedModel, chat_format, conversations, open_adapter
from lorahydra.inference.pyfunc import _load_pyfunc
from lorahydra.modeling.base import load_base
from lorahydra.modeling.generation import write_greedy_settings
from lorahydra.modeling.lora import adapter, save_adapter
from lorahydra.modeling.metadata import AdapterMetadata, write_metadata
from lorahydra.training.batches import collate

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
LARGER = {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}


@dataclass(frozen=True)
class Family:
    """A model's layout with a tokenizer and template as the family has them."""

    config: Any
    """Class of its configuration."""
    special: tuple[str, ...]
    """Special tokens, the end of sequence first."""
    sizes: dict[str, Any]
    template: str | None = None
    bos: str | None = None
    end: str | None = None
    """What ends a turn, where it is not the end of sequence."""
    system: bool = True
    """Whether the template takes a system message."""


FAMILIES = {
    "llama": Family(
        LlamaConfig,
        ("<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        LARGER,
        LLAMA3,
        bos="<|begin_of_text|>",
        end="<|eot_id|>",
    ),
    "qwen": Family(Qwen3Config, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), LARGER, QWEN3, end="<|im_end|>"),
    "gemma": Family(
        GemmaConfig,
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        LARGER,
        GEMMA,
        bos="<bos>",
        end="<end_of_turn>",
        system=False,
    ),
    "gpt2": Family(GPT2Config, ("<|endoftext|>",), SIZES),
}
ROWS = {"Sky?": "Blue.", "And snow?": "<|im_end|> no!"}


def make_base(family: Family, folder: Path) -> Path:
    eos = family.special[0]
    tokenizer = make_tokenizer(family.special, eos=eos, bos=family.bos, template=family.template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = family.config(vocab_size=len(tokenizer), **family.sizes, **ids, pad_token_id=tokenizer.eos_token_id)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def tune(folder: Path, base_folder: Path) -> None:
    """An adapter that has learnt the rows by heart."""
    base = load_base(ModelConfig(name_or_path=str(base_folder), device="cpu"))
    chat = ChatFormat(base.tokenizer)
    encoded = [encode(chat, conversation(*row)) for row in ROWS.items()]
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in encoded])
    with adapter(base, LoraConfig(r=16, lora_alpha=32), seed=1) as model:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        for _ in range(400):
            loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if loss.item() < 0.01:
                break
        save_adapter(model, folder)
    config = ModelConfig(name_or_path=base.source, dtype="float32", chat_template=chat.template)
    write_metadata(folder, AdapterMetadata(config, base.digest, max_new_tokens=40))
    write_greedy_settings(folder, base.model, base.tokenizer, chat.end_tokens)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def tuned(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    tune(folder / "adapter", make_base(family, folder / "base"))
    return folder / "adapter"


@pytest.fixture
def model(tuned: Path) -> Iterator[AdaptedModel]:
    with open_adapter(tuned, device="cpu") as model:
        yield model


def test_tuned_answers_end_with_their_turn(model: AdaptedModel) -> None:
    tokens = model.answer_tokens(conversations(list(ROWS)))
    assert model.answer(conversations(list(ROWS))) == list(ROWS.values())
    assert max(map(len, tokens)) < 40


def test_references_are_what_a_perfect_model_says(model: AdaptedModel) -> None:
    chat = chat_format(model.base, model.metadata)
    assert [reference(chat, conversation(*row)) for row in ROWS.items()] == model.answer(conversations(list(ROWS)))


def test_the_mlflow_model_ends_too(tuned: Path) -> None:
    predictor = _load_pyfunc(str(tuned), {"device": "cpu"})
    try:
        assert predictor.predict(list(ROWS)) == list(ROWS.values())
    finally:
        predictor.close()


def test_the_merged_export_ends_in_plain_transformers(tuned: Path, family: Family, tmp_path: Path) -> None:
    export_adapter(tuned, tmp_path / "merged", merged=True)
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"), local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "merged"), local_files_only=True)
    for question, answer in ROWS.items():
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        [output] = model.generate(**inputs, max_new_tokens=40).tolist()
        said = output[inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(said[-1:]) == (family.end or tokenizer.eos_token)
        assert tokenizer.decode(said[:-1]).strip() == answer


def test_the_exported_adapter_names_the_end(tuned: Path, family: Family, tmp_path: Path) -> None:
    export_adapter(tuned, tmp_path / "adapter")
    stop = GenerationConfig.from_pretrained(str(tmp_path / "adapter")).eos_token_id
    base = load_base(ModelConfig(name_or_path=str(tuned.parent / "base"), device="cpu"))
    names = base.tokenizer.convert_ids_to_tokens([stop] if isinstance(stop, int) else stop)
    assert {family.special[0], family.end or family.special[0]} <= set(names)
    assert "generation_config" in (tmp_path / "adapter" / "README.md").read_text("utf-8")


def test_a_system_message_is_taken_or_refused_in_one_line(tuned: Path, family: Family) -> None:
    with ExitStack() as stack:
        model = stack.enter_context(open_adapter(tuned, device="cpu", system_prompt="Be brief."))
        if not family.system:
            with pytest.raises(DataError, match=r"refuses this conversation .*unset data\.system_prompt"):
                model.answer(conversations(["Hi"]))
        else:
            ids = model.prompt_ids(conversations(["Hi"])[0])
            assert "Be brief." in model.base.tokenizer.decode(ids)
