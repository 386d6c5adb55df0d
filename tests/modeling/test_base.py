from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.generation import generate
from tests.support.gpu import needs_gpu

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ConfigError, ModelError
from lorahydra.modeling.base import load_base, load_copy, load_tokenizer
from lorahydra.modeling.devices import resolve_device, resolve_dtype
from lorahydra.modeling.gguf import tensor_count
from lorahydra.utils import progress

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def config(path: Path | str, **settings: Any) -> ModelConfig:
    return ModelConfig(name_or_path=str(path), **{"device": "cpu", **settings})


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_local_model_is_loaded_frozen_and_ready(tiny_model: Path) -> None:
    base = load_base(config(tiny_model))
    assert base.source == str(tiny_model)
    assert base.device == torch.device("cpu")
    assert base.dtype == torch.float32
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    assert base.tokenizer.pad_token_id is not None


def test_the_same_settings_give_the_same_object(tiny_model: Path) -> None:
    first = load_base(config(tiny_model))
    assert load_base(config(tiny_model, chat_template="{{ messages }}")) is first
    assert load_base(config(tiny_model, dtype="bfloat16")) is not first


def test_loading_another_model_frees_the_first(tiny_model: Path, tiny_base_model: Path) -> None:
    base = load_base(config(tiny_model))
    weight = weakref.ref(base.model.get_input_embeddings().weight)
    del base
    load_base(config(tiny_base_model))
    gc.collect()
    assert weight() is None


def test_the_digest_follows_the_content(tiny_model: Path, copy: Path) -> None:
    original = load_base(config(tiny_model)).digest
    assert original is not None
    assert original.startswith("sha256:")
    assert load_base(config(copy)).digest == original
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    other = Path(shutil.copytree(copy, copy.with_name("other")))
    assert load_base(config(other)).digest != original


def test_loading_prints_nothing(tiny_model: Path, tiny_base_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(config(tiny_model))
    load_base(config(tiny_base_model))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_tokenizer_needs_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert load_tokenizer(config(copy))("abc")["input_ids"]


def test_a_missing_padding_token_becomes_the_end_of_text(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(config(copy))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_a_model_without_a_chat_template_loads(tiny_base_model: Path) -> None:
    assert load_tokenizer(config(tiny_base_model)).chat_template is None
    assert load_base(config(tiny_base_model)).tokenizer.chat_template is None


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_gguf_file_is_an_ordinary_model(
    tiny_gguf: Path, by_folder: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = load_base(config(tiny_gguf.parent if by_folder else tiny_gguf))
    assert capfd.readouterr().err == ""
    assert base.model.config.to_dict().get("quantization_config") is None
    out = base.model.generate(**base.tokenizer("abc", return_tensors="pt"), max_new_tokens=2, do_sample=False)
    assert out.shape[1] > 1
    base.model.save_pretrained(tmp_path)  # refused for a model that counts as quantised
    again = type(base.model).from_pretrained(tmp_path)
    assert torch.equal(again.get_input_embeddings().weight, base.model.get_input_embeddings().weight)


def write_config(**settings: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(content))

    return spoil


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def small_vocabulary(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    weights = {name: value[:100].clone() if len(value) == 259 else value for name, value in stored.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(vocab_size=100)(folder)


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def make_encoder(folder: Path) -> None:
    from transformers import BertConfig

    BertConfig(architectures=["BertModel"]).save_pretrained(folder)


def make_seq2seq(folder: Path) -> None:
    from transformers import T5Config

    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "does not hold settings"),
    "config missing": (lambda f: (f / "config.json").unlink(), "no config.json and no .gguf"),
    "unknown architecture": (
        write_config(model_type="nonsense", architectures=["Nonsense"]),
        "cannot be used",
    ),
    "encoder": (make_encoder, "not a causal language model \\(BertModel\\)"),
    "sequence to sequence": (make_seq2seq, "not a causal language model \\(T5"),
    "weights cut short": (cut_weights, "damaged or cut short"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights as a pickle": (pickle_only, "pytorch_model.bin, a pickle"),
    "shard missing": (lose_a_shard, "has no model-00001-of-00002.safetensors"),
    "tensor missing": (drop_tensor, "lack 1 tensors .*up_proj"),
    "other shapes": (write_config(intermediate_size=48), "other shapes than its config.json says"),
    "settings that cannot be": (write_config(num_attention_heads=3), "hidden size .* multiple"),
    "settings of another type": (write_config(rms_norm_eps="small"), "cannot be"),
    "generation settings broken": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json cannot be read as JSON",
    ),
    "the end of the answer is not a token": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "eos_token_id=x",
    ),
    "tokenizer of another model": (small_vocabulary, "has the token .* with id 258, .* embeddings for 100 tokens"),
    "tokenizer settings of another type": (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "tokenizer of"),
    "template not text": (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"), "tokenizer of"),
    "code of its own": (write_config(model_type="x", auto_map={"AutoConfig": "x.Y"}), "cannot be used"),
    "tokenizer missing": (lose_tokenizer, "has no tokenizer"),
    "tokenizer broken": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer of .* cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_clear_line(copy: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(copy)
    with pytest.raises(ModelError, match=message) as error:
        load_base(config(copy))
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_reading_a_gguf_file_shows_its_progress(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level("INFO")
    load_copy(config(tiny_gguf))
    first, *steps = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Reading ")]
    assert first.startswith("Reading tiny.gguf (0 MB)")
    count = tensor_count(tiny_gguf)
    assert steps == [f"Reading tiny.gguf: {number} of {count}" for number in range(1, count)]


def test_weights_that_find_no_place_are_said(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_config(num_hidden_layers=1)(copy)
    load_base(config(copy))
    assert "9 tensors of its weights have no place in the model" in caplog.text


def test_a_padding_token_without_an_embedding_is_replaced(copy: Path) -> None:
    settings = json.loads((copy / "tokenizer_config.json").read_text()) | {"pad_token": "[PAD]"}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    base = load_base(config(copy))
    assert base.tokenizer.pad_token == base.tokenizer.eos_token


def test_a_token_without_an_embedding_is_refused_where_it_is_used(copy: Path) -> None:
    tokenizer = load_tokenizer(config(copy))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(copy)
    base = load_base(config(copy))
    [number] = base.tokenizer("<image>", add_special_tokens=False)["input_ids"]
    with pytest.raises(ModelError, match="a prompt has the token id 259, and the model has embeddings for 259 tokens"):
        generate(base.model, [[number]], stop=frozenset(), max_new_tokens=2, batch_size=1)


def test_a_broken_gguf_file_is_one_clear_line(tmp_path: Path, tiny_gguf: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cut\.gguf") as error:
        load_base(config(path))
    assert "\n" not in str(error.value)


def test_an_unknown_attention_kernel_is_a_config_error(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.attn_implementation=sdqa cannot be used"):
        load_base(config(tiny_model, attn_implementation="sdqa"))


def test_no_code_of_a_model_is_run(copy: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    write_config(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"})(copy)
    with pytest.raises(ModelError):
        load_base(config(copy))
    assert not (copy / "ran").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match=f"model.device={device}: .* no CUDA GPU"):
            resolve_device(device)


@needs_gpu
def test_with_a_gpu(tiny_model: Path) -> None:
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="no such GPU"):
        resolve_device("cuda:99")
    base = load_base(config(tiny_model, device="auto"))
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert base.dtype == (torch.bfloat16 if native else torch.float32)
    assert {p.device for p in base.model.parameters()} == {torch.device("cuda:0")}


def test_dtypes_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ConfigError, match=r"model\.dtype=float16 needs a GPU"):
        resolve_dtype("float16", cpu)
