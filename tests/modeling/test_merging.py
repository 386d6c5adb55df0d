"""An adapter merged into a copy of its base: the same model for plain transformers, and the base untouched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.models import weights_digest

from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.errors import ModelError
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.lora import adapter, load_adapter, save_adapter
from lorahydra.modeling.merging import merge_adapter, save_merged

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "down_proj"]},
}
INPUT = torch.arange(3, 23)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(INPUT).logits.float()
    return result


def trained(base: BaseModel, folder: Path, **settings: Any) -> torch.Tensor:
    """Save an adapter that says something else than the base model, and give its logits."""
    with adapter(base, LoraConfig(r=4, lora_alpha=8, **settings), seed=1) as model:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for _ in range(3):
            model(INPUT, labels=INPUT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_adapter(model, folder)
    before = logits(base.model)
    with load_adapter(base, folder) as model:
        expected = logits(model)
    assert (expected - before).abs().max() > 0.1
    return expected


def reloaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True).eval()


def config_of(base: BaseModel) -> ModelConfig:
    return ModelConfig(name_or_path=base.source, device="cpu")


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_the_same_model_and_the_base_stays(base: BaseModel, tmp_path: Path, variant: str) -> None:
    expected = trained(base, tmp_path / "adapter", **VARIANTS[variant])
    before = weights_digest(base.model)
    merged = merge_adapter(config_of(base), tmp_path / "adapter", torch.float32)
    assert load_base(config_of(base)) is base
    assert weights_digest(base.model) == before
    save_merged(merged, tmp_path)
    torch.testing.assert_close(logits(reloaded(tmp_path)), expected, rtol=1e-4, atol=1e-4)


def test_tied_output_head_is_merged_alone(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "tied")
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = load_base(ModelConfig(name_or_path=str(folder), device="cpu"))
    (tmp_path / "merged").mkdir()

    for targets, tied in ((["lm_head"], False), (["q_proj"], True)):
        expected = trained(base, tmp_path / "adapter", target_modules=targets)
        merged = merge_adapter(config_of(base), tmp_path / "adapter", torch.float32)
        save_merged(merged, tmp_path / "merged")
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is tied
        torch.testing.assert_close(logits(reloaded(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(base: BaseModel, tmp_path: Path, dtype: torch.dtype) -> None:
    trained(base, tmp_path / "adapter")
    exact = merge_adapter(config_of(base), tmp_path / "adapter", torch.float32)
    save_merged(merge_adapter(config_of(base), tmp_path / "adapter", dtype), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(saved[name], exact.model.get_parameter(name).to(dtype), rtol=0, atol=0)


def test_weights_beyond_float16_are_refused(base: BaseModel, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value * 1e5 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="too large for float16"):
        merge_adapter(config_of(base), tmp_path / "adapter", torch.float16)


def test_what_is_saved_is_plain(base: BaseModel, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    trained(base, tmp_path / "adapter")
    target = tmp_path / "merged"
    target.mkdir()
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_merged(merge_adapter(config_of(base), tmp_path / "adapter", torch.float32), target, chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(str(target), local_files_only=True)
    assert tokenizer.chat_template == template
    settings = GenerationConfig.from_pretrained(str(target))
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not settings.do_sample
    for file in target.glob("*.json"):
        assert base.source not in file.read_text("utf-8"), "a path of this machine"
    assert not list(target.glob("*adapter*"))


def test_gguf_becomes_an_ordinary_folder(tiny_gguf: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name_or_path=str(tiny_gguf), device="cpu"))
    expected = trained(base, tmp_path / "adapter")
    target = tmp_path / "merged"
    target.mkdir()
    save_merged(merge_adapter(config_of(base), tmp_path / "adapter", torch.float32), target)
    assert not list(target.glob("*.gguf"))
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    torch.testing.assert_close(logits(reloaded(target)), expected, rtol=1e-4, atol=1e-4)


def test_adapter_of_another_model_is_refused(base: BaseModel, tiny_gguf: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(ModelError, match="does not fit the base model"):
        merge_adapter(ModelConfig(name_or_path=str(tiny_gguf)), tmp_path / "adapter", torch.float32)
