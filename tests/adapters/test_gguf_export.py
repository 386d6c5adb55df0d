"""GGUF files hold the weights, settings and tokens that llama.cpp needs to answer as the adapter did in its trial."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_tiny_adapter
from tests.support.models import SMALL_SIZES, write_byte_tokenizer

from lorahydra.adapters.gguf_export import export_gguf
from lorahydra.errors import ConfigError, ModelError, OutputError
from lorahydra.modeling.gguf_architectures import gguf_architecture, rope_factors
from lorahydra.modeling.gguf_tokenizer import LLAMA3, QWEN2, TEKKEN, pre_tokenizer
from lorahydra.modeling.merging import merge_adapter
from lorahydra.modeling.metadata import read_metadata

WEIGHTS = "adapter_model.safetensors"


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, str]]:
    """Metadata, dequantised tensors, and the type of each tensor."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    return fields, tensors, {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def paired(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of the original Llama, written out: the first of each half, the second of each half, …"""
    width = weights.shape[0] // heads
    rows = [
        head * width + half * (width // 2) + i for head in range(heads) for i in range(width // 2) for half in (0, 1)
    ]
    return weights[rows]


def changed(adapter: Path, folder: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    return folder


def product(tensors: dict[str, np.ndarray], name: str, alpha: float) -> np.ndarray:
    """What llama.cpp adds to a tensor."""
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    return alpha / a.shape[0] * b @ a


def merged_weights(folder: Path) -> dict[str, np.ndarray]:
    base = merge_adapter(read_metadata(folder).model, folder, torch.float32)
    return {name: value.numpy() for name, value in base.model.state_dict().items()}


@pytest.mark.parametrize(
    ("dtype", "stored", "error"), [("auto", "F16", 5e-4), ("q8_0", "Q8_0", 8e-3), ("float32", "F32", 0)]
)
def test_a_merged_model(tiny_adapter: Path, tmp_path: Path, dtype: str, stored: str, error: float) -> None:
    export_gguf(tiny_adapter, tmp_path / "out", merged=True, dtype=dtype)
    fields, tensors, kinds = read(tmp_path / "out" / "model.gguf")
    expected = merged_weights(tiny_adapter)
    for name, heads in (("q", 4), ("k", 2)):
        for layer in (0, 1):
            rows = paired(expected[f"model.layers.{layer}.self_attn.{name}_proj.weight"], heads)
            assert np.abs(tensors[f"blk.{layer}.attn_{name}.weight"] - rows).max() <= error * np.abs(rows).max()
    for ours, theirs in (
        ("model.layers.1.self_attn.v_proj", "blk.1.attn_v"),
        ("model.layers.0.mlp.down_proj", "blk.0.ffn_down"),
        ("model.embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("model.norm", "output_norm"),
    ):
        values = expected[f"{ours}.weight"]
        assert np.abs(tensors[f"{theirs}.weight"] - values).max() <= error * np.abs(values).max()
    assert len(tensors) == len(expected)
    assert kinds["blk.0.attn_q.weight"] == stored
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert {name: fields[f"llama.{name}"] for name in ("block_count", "attention.head_count_kv", "context_length")} == {
        "block_count": 2,
        "attention.head_count_kv": 2,
        "context_length": 2048,
    }
    assert fields["llama.rope.dimension_count"] == 8
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "llama-server --model model.gguf --jinja --temp 0" in card
    assert "library_name: gguf" in card


def test_the_tokenizer(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_gguf(tiny_adapter, tmp_path / "out", merged=True)
    fields, _, _ = read(tmp_path / "out" / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokens = fields["tokenizer.ggml.tokens"]
    assert {token: number for number, token in enumerate(tokens)} == tokenizer.get_vocab()
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert [kind for kind in fields["tokenizer.ggml.token_type"][:4]] == [3, 3, 3, 1], "control tokens first"
    assert tokens[fields["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert tokens[fields["tokenizer.ggml.eot_token_id"]] == "<|im_start|>", "it begins the next turn"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == read_metadata(tiny_adapter).model.chat_template


def test_an_adapter(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    export_gguf(tiny_adapter, tmp_path / "out")
    fields, tensors, kinds = read(tmp_path / "out" / "adapter.gguf")
    assert (fields["general.type"], fields["general.architecture"]) == ("adapter", "llama")
    assert (fields["adapter.type"], fields["adapter.lora.alpha"]) == ("lora", 8.0)
    assert set(kinds.values()) == {"F32"}
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    base, tuned = load_file(tiny_model / "model.safetensors"), merged_weights(tiny_adapter)
    for ours, theirs, heads in (
        ("model.layers.0.self_attn.q_proj", "blk.0.attn_q", 4),
        ("model.layers.1.self_attn.k_proj", "blk.1.attn_k", 2),
        ("model.layers.1.mlp.up_proj", "blk.1.ffn_up", None),
    ):
        change = tuned[f"{ours}.weight"] - base[f"{ours}.weight"].numpy()
        change = change if heads is None else paired(change, heads)
        np.testing.assert_allclose(product(tensors, f"{theirs}.weight", 8.0), change, atol=1e-6)


def test_the_base_beside_the_adapter(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    export_gguf(tiny_adapter, tmp_path / "out", with_base=True, dtype="float32")
    _, tensors, _ = read(tmp_path / "out" / "base.gguf")
    value = load_file(tiny_model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].numpy()
    np.testing.assert_array_equal(tensors["blk.0.ffn_up.weight"], value)
    assert (tmp_path / "out" / "adapter.gguf").is_file()


def test_scales_of_all_kinds(tiny_adapter: Path, tmp_path: Path) -> None:
    stable = changed(tiny_adapter, tmp_path / "rslora", use_rslora=True)
    mixed = changed(tiny_adapter, tmp_path / "mixed", alpha_pattern={"q_proj": 20, "layers.1.mlp.up_proj": 3})
    unscaled = changed(tiny_adapter, tmp_path / "zero", lora_alpha=0)
    weights = load_file(tiny_adapter / WEIGHTS)
    part = "model.layers.1.mlp.up_proj"
    a, b = (weights[f"base_model.model.{part}.lora_{factor}.weight"].numpy() for factor in "AB")
    for folder, scale in ((stable, 8 / 4**0.5), (mixed, 3 / 4), (unscaled, 0)):
        export_gguf(folder, tmp_path / "out" / folder.name)
        fields, tensors, _ = read(tmp_path / "out" / folder.name / "adapter.gguf")
        alpha = fields["adapter.lora.alpha"]
        assert alpha > 0, "llama.cpp does not scale with 0"
        np.testing.assert_allclose(product(tensors, "blk.1.ffn_up.weight", alpha), scale * b @ a, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias=all"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"init_lora_weights": "olora"}, "changed weights \\(init_lora_weights=olora\\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed weights"),
    ],
)
def test_what_llama_cpp_cannot_load_as_an_adapter(
    tiny_adapter: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = changed(tiny_adapter, tmp_path / "odd", **settings)
    with pytest.raises(ModelError, match=f"{words}.*add --merged"):
        export_gguf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_that_an_adapter_cannot_have(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "odd")
    weights = load_file(folder / WEIGHTS)
    save_file(weights | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="the tensor base_model.model.lm_head.weight"):
        export_gguf(folder, tmp_path / "out")
    name = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="do not fit each other"):
        export_gguf(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="add --merged"):
        export_gguf(tiny_adapter, tmp_path / "out", dtype="q8_0")


def test_a_full_disk_is_one_line(tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", lambda _, data: data.tofile("/dev/full"))
    with pytest.raises(OutputError, match="cannot write to .*out: the disk is full"):
        export_gguf(tiny_adapter, tmp_path / "out", merged=True)
    assert list(tmp_path.iterdir()) == []


def small_config(kind: str, **more: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **SMALL_SIZES, **more)


def test_architectures() -> None:
    with pytest.raises(ModelError, match="models of type gpt2 cannot be exported as GGUF"):
        gguf_architecture(small_config("gpt2"))
    with pytest.raises(ModelError, match="hidden_act=gelu"):
        gguf_architecture(small_config("llama", hidden_act="gelu"))
    odd = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match="rope_type=dynamic"):
        gguf_architecture(small_config("llama", rope_parameters=odd))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_whole_qwen(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from lorahydra.modeling.gguf_writing import write_model_gguf

    model = AutoModelForCausalLM.from_config(small_config(kind, tie_word_embeddings=True))
    write_model_gguf(tmp_path / "model.gguf", model, "float32", "x", lambda writer: None)
    fields, tensors, _ = read(tmp_path / "model.gguf")
    weights = model.state_dict()
    assert fields["general.architecture"] == kind
    assert "output.weight" not in tensors, "it shares the embeddings"
    place = "self_attn.q_proj.bias" if kind == "qwen2" else "self_attn.k_norm.weight"
    name = "blk.1.attn_q.bias" if kind == "qwen2" else "blk.1.attn_k_norm.weight"
    np.testing.assert_array_equal(tensors[name], weights[f"model.layers.1.{place}"].numpy())
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight"], weights["model.layers.1.self_attn.q_proj.weight"])
    assert len(tensors) == len(weights) - 1


def test_rotary_frequencies_of_llama_3() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = small_config("llama", rope_parameters={**rope, "original_max_position_embeddings": 64})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 5e5 ** (torch.arange(0, 8, 2) / 8)
    factors = rope_factors(config)
    assert factors is not None
    torch.testing.assert_close(torch.tensor(factors), plain / scaled)
    assert len({round(factor, 3) for factor in factors}) > 1
    assert rope_factors(small_config("llama")) is None


def split(*steps: dict[str, Any], words: bool = False, kind: str = "BPE") -> dict[str, Any]:
    splitter = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"model": {"type": kind, "ignore_merges": words, "merges": ["a b"]}, "pre_tokenizer": splitter}


def by(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def test_ways_to_split_text() -> None:
    whole, digits = {"type": "ByteLevel", "use_regex": True}, {"type": "Digits", "individual_digits": True}
    part = {"type": "ByteLevel", "use_regex": False}
    assert pre_tokenizer(split(whole)) == "gpt-2"
    assert pre_tokenizer(split(digits, whole)) == "smollm"
    assert pre_tokenizer(split(by(QWEN2), part)) == "qwen2"
    assert pre_tokenizer(split(by(LLAMA3), part, words=True)) == "llama-bpe"
    assert pre_tokenizer(split(by(TEKKEN), part, words=True)) == "tekken"
    # As in the tokenizer.json of Qwen2 and of Llama 3.
    assert QWEN2 == (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    for odd in (split(by("x+"), part), split(whole, kind="Unigram"), split({"type": "Metaspace"})):
        with pytest.raises(ModelError, match="llama.cpp's name is not known"):
            pre_tokenizer(odd)
    with pytest.raises(ModelError, match="ignore_merges=False"):
        pre_tokenizer(split(by(LLAMA3), part))


def test_ids_without_a_token_get_a_placeholder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from lorahydra.modeling.gguf_tokenizer import add_tokenizer

    write_byte_tokenizer(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    add_tokenizer(writer, tokenizer, 261, chat_template="{{ x }}", stop=[2, 1, 0], adds_bos=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    fields, _, _ = read(tmp_path / "x.gguf")
    assert fields["tokenizer.ggml.tokens"][-2:] == ["[PAD259]", "[PAD260]"]
    assert fields["tokenizer.ggml.token_type"][-1] == gguf.TokenType.UNUSED
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [2, 1, 0]


def test_a_base_that_was_quantised_in_training(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_adapter(tiny_model, tmp_path / "trained", quantization="nf4")
    export_gguf(folder, tmp_path / "alone")
    assert "--with-base writes the weights of the training" in caplog.text
    export_gguf(folder, tmp_path / "pair", with_base=True, dtype="float32")
    _, base, _ = read(tmp_path / "pair" / "base.gguf")
    _, tensors, _ = read(tmp_path / "pair" / "adapter.gguf")
    name = "blk.0.ffn_up.weight"
    expected = merged_weights(folder)["model.layers.0.mlp.up_proj.weight"]
    np.testing.assert_allclose(base[name] + product(tensors, name, 8.0), expected, atol=1e-6)
    original = load_file(tiny_model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert not np.array_equal(base[name], original), "the weights of the training were rounded to 4 bits"
