"""Base models in 4 and 8 bits: what is quantised, that products and gradients are right, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.support.gpu import needs_gpu
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.errors import ConfigError, ModelError
from lorahydra.modeling import quantization
from lorahydra.modeling.base import BaseModel, load_base, load_copy
from lorahydra.modeling.lora import adapter, load_adapter, save_adapter
from lorahydra.modeling.merging import merge_adapter, save_merged
from lorahydra.modeling.quantization import check_quantization, dequantize, quantization_config

KINDS = ["nf4", "int8"]
INPUT = torch.arange(3, 23)[None]
CPU = torch.device("cpu")


def config(model: Path, kind: str | None, **settings: str) -> ModelConfig:
    return ModelConfig(**{"name_or_path": str(model), "device": "cpu", "quantization": kind, **settings})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(INPUT.to(model.device)).logits.float().cpu()  # type: ignore[union-attr,arg-type]
    return result


def linear_bytes(model: nn.Module) -> int:
    """Of the linear layers without the output head, with what dequantising needs."""
    layers = [module for name, module in model.named_modules() if name.endswith("_proj")]
    size = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
    for layer in layers:
        if (state := getattr(layer.weight, "quant_state", None)) is not None:
            size += state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
        elif hasattr(layer, "state"):
            size += layer.state.SCB.nbytes
    return size


def trained(base: BaseModel, folder: Path, **settings: object) -> torch.Tensor:
    """Save an adapter that says something else than the base model, and give its logits."""
    with adapter(base, LoraConfig(r=4, lora_alpha=8, **settings), seed=1) as model:  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        tokens = INPUT.to(base.device)
        for _ in range(3):
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_adapter(model, folder)
    with load_adapter(base, folder) as model:
        return logits(model)


def merged(settings: ModelConfig, folder: Path) -> nn.Module:
    """The adapter in a folder merged, written to `merged` beside it, and read by transformers."""
    target = folder.with_name("merged")
    target.mkdir()
    save_merged(merge_adapter(settings, folder, torch.float32), target)
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    model: nn.Module = AutoModelForCausalLM.from_pretrained(str(target), dtype=torch.float32)
    return model


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_computes_as_the_cpu(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    settings = config(tiny_model, kind, dtype="float32")
    expected = trained(load_base(settings), tmp_path / "cpu")
    on_gpu = dataclasses.replace(settings, device="cuda")
    actual = trained(load_base(on_gpu), tmp_path / "gpu")
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(logits(merged(on_gpu, tmp_path / "gpu")), actual, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("kind", "share"), [("nf4", 0.28), ("int8", 0.6)])
def test_linear_layers_are_small_and_the_rest_is_as_it_was(tiny_model: Path, kind: str, share: float) -> None:
    plain = load_base(config(tiny_model, None, dtype="bfloat16"))
    base = load_base(config(tiny_model, kind, dtype="bfloat16"))
    assert linear_bytes(base.model) < share * linear_bytes(plain.model)
    assert base.digest == f"{plain.digest}+{kind}"
    assert base.dtype == base.model.dtype == torch.bfloat16
    kept = {name: p for name, p in base.model.named_parameters() if not name.endswith("_proj.weight")}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= kept.keys()
    assert all(torch.equal(p, plain.model.get_parameter(name)) for name, p in kept.items())
    assert load_base(config(tiny_model, kind, dtype="bfloat16")) is base


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_and_gradients_are_those_of_the_dequantised_weights(tiny_model: Path, kind: str, dtype: str) -> None:
    base = load_base(config(tiny_model, kind, dtype=dtype))
    exact = load_copy(config(tiny_model, kind, dtype=dtype))
    dequantize(exact.model, base.dtype)
    found = []
    for model in (base.model, exact.model):
        embedded = model.get_input_embeddings()(INPUT).requires_grad_()
        outputs = model(inputs_embeds=embedded).logits
        outputs.float().square().mean().backward()
        found.append((outputs, embedded.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(logits(base.model.train()), logits(base.model.eval())), "evaluating changes nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"target_modules": ["q_proj", "lm_head"]}])
def test_merging_dequantises(tiny_model: Path, tmp_path: Path, kind: str, variant: dict[str, object]) -> None:
    settings = config(tiny_model, kind)
    base = load_base(settings)
    before = logits(base.model)
    expected = trained(base, tmp_path / "adapter", **variant)
    assert torch.equal(logits(base.model), before)
    torch.testing.assert_close(logits(merged(settings, tmp_path / "adapter")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_weights(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "gpt2")
    (folder / "model.safetensors").unlink()
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=2)).save_pretrained(folder)
    settings = config(folder, kind)
    expected = trained(load_base(settings), tmp_path / "adapter")
    torch.testing.assert_close(logits(merged(settings, tmp_path / "adapter")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_was_saved_quantised(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "stored")
    settings = quantization_config(kind, torch.float32)
    AutoModelForCausalLM.from_pretrained(
        str(tiny_model), quantization_config=settings, device_map={"": "cpu"}
    ).save_pretrained(folder)
    base = load_base(config(folder, None))
    assert torch.equal(logits(base.model), logits(load_copy(config(tiny_model, kind)).model))
    expected = trained(base, tmp_path / "adapter")
    torch.testing.assert_close(
        logits(merged(config(folder, None), tmp_path / "adapter")), expected, rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ConfigError, match="which is a GGUF file or quantised already: leave it out"):
        load_base(config(folder, "nf4"))
    with (
        pytest.raises(ModelError, match="lora.init_lora_weights=pissa needs a base model in full precision"),
        adapter(base, LoraConfig(init_lora_weights="pissa"), seed=1),
    ):
        pass


def test_a_gguf_file_is_not_quantised_again(tiny_gguf: Path) -> None:
    with pytest.raises(ConfigError, match="which is a GGUF file or quantised already: leave it out"):
        load_base(config(tiny_gguf, "nf4"))


def test_what_this_machine_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelConfig(quantization="nf4")
    check_quantization(settings, CPU)
    with pytest.raises(ConfigError, match="needs a CUDA GPU or the CPU"):
        check_quantization(settings, torch.device("mps"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_quantization(ModelConfig(), CPU)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'lorahydra\[quantized\]'"):
        check_quantization(settings, CPU)


def test_full_precision_does_not_need_bitsandbytes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(load_copy(config(tiny_model, None)).model)
    monkeypatch.setattr(quantization, "bnb", None)
    assert torch.equal(logits(load_copy(config(tiny_model, None)).model), expected)


def test_importing_it_asks_no_hub_and_loads_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_kernels, compiler = ModuleType("kernels"), torch.compile
    monkeypatch.setitem(sys.modules, "kernels", hub_kernels)
    for name in [name for name in sys.modules if name == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Watcher(), *sys.meta_path])
    with pytest.raises(ImportError, match="watched"):
        quantization._import_bitsandbytes()
    assert sys.modules["kernels"] is hub_kernels
    assert torch.compile is compiler


class Watcher:
    """Refuses bitsandbytes, after a look at what it would find."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "bitsandbytes":
            assert sys.modules["kernels"] is None
            assert torch.compile(len) is len
            raise ImportError("watched")
