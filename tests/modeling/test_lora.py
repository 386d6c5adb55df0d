from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.models import weights_digest

from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.errors import LorahydraError, ModelError, OutputError
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.lora import adapter, load_adapter, save_adapter

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_fast": {"init_lora_weights": "pissa_niter_4"},
    "pissa_rslora": {"init_lora_weights": "pissa", "use_rslora": True},
}
INPUT = torch.arange(3, 23)[None]
TARGET = torch.arange(4, 24)[None]


def trainable_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(params=VARIANTS)
def config(request: pytest.FixtureRequest) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, **VARIANTS[request.param])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT).logits


def train(model: torch.nn.Module, steps: int = 3) -> None:
    """A few large optimiser steps on one example."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(INPUT).logits[0].float(), TARGET[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def state(model: torch.nn.Module) -> dict[str, object]:
    """Everything about a model that using an adapter could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {
        "weights": weights_digest(model),
        "modules": {name: (id(module), type(module)) for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": sum(len(getattr(module, hook)) for module in model.modules() for hook in hooks),
        "training": {name: module.training for name, module in model.named_modules()},
        "checkpointing": [getattr(module, "gradient_checkpointing", None) for module in model.modules()],
        "parameters": {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "forward": model.forward,
        "peft": (getattr(model, "peft_config", None), getattr(model, "_hf_peft_config_loaded", None)),
        "logits": logits(model).sum().item(),
    }


def test_the_base_is_as_before_after_training_an_adapter(base: BaseModel, config: LoraConfig) -> None:
    before = state(base.model)
    with adapter(base, config, seed=1) as model:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
        model.config.use_cache = False
        base.model.generation_config.max_new_tokens = 5
        base.model.forward = lambda *args, **kwargs: type(base.model).forward(base.model, *args, **kwargs)
        base.model.extra = "left behind"
        train(model)
        model.generate(input_ids=INPUT, do_sample=False)
        assert not torch.equal(logits(model), logits_without(base, before)), "the adapter learned nothing"
    assert state(base.model) == before


def logits_without(base: BaseModel, before: dict[str, object]) -> torch.Tensor:
    """Logits of the untuned model, computed on a fresh copy of it."""
    fresh = type(base.model).from_pretrained(base.source, local_files_only=True)
    assert weights_digest(fresh) == before["weights"]
    return logits(fresh)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_the_base_is_as_before_when_training_breaks(base: BaseModel, failure: type[BaseException]) -> None:
    before = state(base.model)

    def broken_training() -> None:
        with adapter(base, LoraConfig(r=4, init_lora_weights="pissa"), seed=1) as model:
            train(model, steps=1)
            raise failure

    with pytest.raises(failure):
        broken_training()
    assert state(base.model) == before


def test_the_base_is_as_before_when_attaching_fails_half_way(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraLayer

    before, original, calls = state(base.model), LoraLayer.pissa_init, 0

    def fails_on_the_third(self: Any, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no memory for the decomposition")
        original(self, *args)

    monkeypatch.setattr(LoraLayer, "pissa_init", fails_on_the_third)
    with (
        pytest.raises(torch.OutOfMemoryError),
        adapter(base, LoraConfig(r=4, init_lora_weights="pissa"), seed=1),
    ):
        pytest.fail("the adapter was attached")
    assert state(base.model) == before


def test_a_seed_fixes_the_adapter_and_leaves_the_random_state_alone(base: BaseModel, config: LoraConfig) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        with adapter(base, config, seed=seed) as model:
            return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = start(1)
    assert torch.equal(torch.rand(3), expected)
    again, other = start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    if config.init_lora_weights != "pissa":  # the exact decomposition has nothing random
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_number_of_threads_does_not_change_the_adapter(base: BaseModel) -> None:
    def start(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        with adapter(base, LoraConfig(r=4, init_lora_weights="pissa_niter_4"), seed=1) as model:
            assert torch.get_num_threads() == threads
            return [p.detach().clone() for p in model.parameters() if p.requires_grad]

    before = torch.get_num_threads()
    try:
        assert all(torch.equal(one, two) for one, two in zip(start(1), start(2), strict=True))
    finally:
        torch.set_num_threads(before)


def test_only_the_adapter_is_trainable(base: BaseModel) -> None:
    assert trainable_parameters(base.model) == 0
    with adapter(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), seed=1) as model:
        # two layers of q (32 → 32) and v (32 → 16), each r · (in + out)
        assert trainable_parameters(model) == 2 * 4 * (32 + 32 + 32 + 16)
        assert model.training


def test_a_bfloat16_base_gets_a_float32_adapter(tiny_model: Path) -> None:
    base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu", dtype="bfloat16"))
    with adapter(base, LoraConfig(r=4), seed=1) as model:
        kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
        assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
        train(model, steps=1)


def test_saved_and_loaded_adapters_answer_alike(base: BaseModel, config: LoraConfig, tmp_path: Path) -> None:
    with adapter(base, config, seed=1) as model:
        train(model)
        expected = logits(model.eval())
        save_adapter(model, tmp_path / "adapter")
    before = state(base.model)
    with load_adapter(base, tmp_path / "adapter") as loaded:
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
        assert not loaded.training
        assert trainable_parameters(loaded) == 0
    assert state(base.model) == before
    assert (expected - logits(base.model)).abs().max() > 0.01


def test_a_saved_adapter_works_with_plain_peft(base: BaseModel, config: LoraConfig, tmp_path: Path) -> None:
    from peft import PeftModel

    with adapter(base, config, seed=1) as model:
        train(model)
        expected = logits(model.eval())
        save_adapter(model, tmp_path / "adapter")
    fresh = type(base.model).from_pretrained(base.source, local_files_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        plain = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)


def test_a_saved_adapter_is_described_for_others(base: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "adapter"
    with adapter(base, LoraConfig(r=4, init_lora_weights="pissa"), seed=1) as model:
        save_adapter(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert list(folder.parent.iterdir()) == [folder]
    assert {p.stat().st_mode & 0o077 for p in folder.iterdir()} != {0}, "only the owner can read it"
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base.source
    assert settings["init_lora_weights"] is True
    assert settings["r"] == 8


def test_a_saved_adapter_names_a_packaged_base_as_everybody_does(base: BaseModel, tmp_path: Path) -> None:
    packaged = dataclasses.replace(base, source="smollm2-135m-instruct")
    with adapter(packaged, LoraConfig(r=4), seed=1) as model:
        save_adapter(model, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_saving_replaces_an_adapter_and_nothing_else(base: BaseModel, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("mine")
    with adapter(base, LoraConfig(r=4), seed=1) as model:
        save_adapter(model, tmp_path / "adapter")
        train(model, steps=1)
        save_adapter(model, tmp_path / "adapter")
        expected = logits(model.eval())
        with pytest.raises(OutputError, match="something else is there"):
            save_adapter(model, notes)
    with load_adapter(base, tmp_path / "adapter") as loaded:
        torch.testing.assert_close(logits(loaded), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "notes"]
    assert (notes / "thesis.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_old_adapter(base: BaseModel, small_disk: Path) -> None:
    target = small_disk / "adapter"
    with adapter(base, LoraConfig(r=4), seed=1) as model:
        save_adapter(model, target)
        (small_disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 16_384))
        old = (target / "adapter_model.safetensors").read_bytes()
        with pytest.raises(OutputError, match="disk is full"):
            save_adapter(model, target)
    assert (target / "adapter_model.safetensors").read_bytes() == old
    assert sorted(p.name for p in small_disk.iterdir()) == ["adapter", "ballast"]


def test_attaching_again_and_again_keeps_no_memory(base: BaseModel) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def cycle() -> None:
        with adapter(base, LoraConfig(r=4, init_lora_weights="pissa"), seed=1) as model:
            train(model, steps=1)

    cycle()
    before = tensors()
    for _ in range(20):
        cycle()
    assert tensors() <= before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["query"]}, r"query matches no module.*q_proj"),
        ({"target_modules": ["q_proj", "v_prj"]}, r"v_prj matches no module.*v_proj"),
        ({"target_modules": r".*layers\.9\..*"}, "matches no module"),
        ({"target_modules": "*_proj"}, "not a regular expression"),
        ({"target_modules": ["input_layernorm"]}, "cannot be put on"),
        (
            {"target_modules": "all-linear", "r": 64, "init_lora_weights": "pissa"},
            "r=64 is too large for PiSSA",
        ),
    ],
)
def test_targets_that_do_not_fit_are_one_clear_line(base: BaseModel, settings: dict[str, Any], message: str) -> None:
    before = state(base.model)
    with pytest.raises(ModelError, match=message) as error, adapter(base, LoraConfig(**settings), seed=1):
        pytest.fail("the adapter was attached")
    assert "\n" not in str(error.value)
    assert state(base.model) == before


def test_pissa_refuses_weights_that_are_also_the_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    base = load_base(ModelConfig(name_or_path=str(folder), device="cpu"))
    config = LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights="pissa")
    with pytest.raises(ModelError, match="also the input embeddings"), adapter(base, config, seed=1):
        pytest.fail("the adapter was attached")


@pytest.fixture
def saved(base: BaseModel, tmp_path: Path) -> Path:
    with adapter(base, LoraConfig(r=4), seed=1) as model:
        save_adapter(model, tmp_path / "saved")
    return tmp_path / "saved"


def broken_adapters() -> Iterator[tuple[str, Any, str]]:
    yield "no config", lambda f: (f / "adapter_config.json").unlink(), "no adapter_config.json"
    yield "broken config", lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"
    yield "no adapter", lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "type IA3"
    yield "pickle", lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "safetensors"
    yield "cut", lambda f: cut(f / "adapter_model.safetensors"), "damaged"
    yield "other base", lambda f: reshape(f / "adapter_model.safetensors"), "does not fit the base model"
    yield "part", lambda f: drop_one(f / "adapter_model.safetensors"), "does not fit the base model"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def reshape(path: Path) -> None:
    save_file({name: t.repeat(2, 2) for name, t in load_file(path).items()}, path)


def drop_one(path: Path) -> None:
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path)


@pytest.mark.parametrize(("spoil", "message"), [pytest.param(s, m, id=i) for i, s, m in broken_adapters()])
def test_a_broken_adapter_is_one_clear_line(base: BaseModel, saved: Path, spoil: Any, message: str) -> None:
    spoil(saved)
    before = state(base.model)
    with pytest.raises(LorahydraError, match=message) as error, load_adapter(base, saved):
        pytest.fail("the adapter was loaded")
    assert "\n" not in str(error.value)
    assert state(base.model) == before


def test_the_digest_sees_one_bit(base: BaseModel) -> None:
    digest = weights_digest(base.model)
    weight = base.model.get_input_embeddings().weight
    original = weight.data
    weight.data = original.clone()
    assert weights_digest(base.model) == digest
    weight.data[0, 0] += 1e-6
    assert weights_digest(base.model) != digest
    weight.data = original
