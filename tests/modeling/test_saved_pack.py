"""Saved adapters that answer side by side give the answers that each gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.generation import generate
from tests.support.gpu import needs_gpu
from tests.support.models import weights_digest

from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.errors import ModelError
from lorahydra.modeling import generation
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.lora import adapter, load_adapter, save_adapter
from lorahydra.modeling.saved_pack import load_pack
from lorahydra.modeling.single import OnlyAloneError
from lorahydra.utils.progress import Progress

SETTINGS = [
    LoraConfig(r=4, lora_alpha=8),
    LoraConfig(r=8, lora_alpha=4, use_rslora=True),
    LoraConfig(r=2, lora_alpha=16, lora_dropout=0.3),
]


def saved(base: BaseModel, settings: Sequence[LoraConfig], folder: Path) -> list[Path]:
    """Adapters that change what the model says."""
    folders = []
    for number, lora in enumerate(settings):
        with adapter(base, lora, seed=number) as model:
            random = torch.Generator().manual_seed(number)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += torch.randn(parameter.shape, generator=random).to(parameter) * 0.2
            folders.append(folder / str(number))
            save_adapter(model, folders[-1])
    return folders


def asked(base: BaseModel, **changed: Any) -> dict[str, Any]:
    random = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, 30, (9,), generator=random).tolist()
    prompts = [torch.randint(10, 60, (length,), generator=random).tolist() for length in lengths]
    # Tokens that the answers have, so that rows leave one by one.
    plain = generate(base.model, prompts, stop=frozenset(), max_new_tokens=9, batch_size=9, progress=QUIET)
    common = frozenset(answer[-1] for answer in plain)
    return {"prompts": prompts, "stop": common, "max_new_tokens": 16, "batch_size": 64, "progress": QUIET} | changed


QUIET = Progress(live=False)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_answers_are_those_of_each_alone(base: BaseModel, tmp_path: Path, batch_size: int) -> None:
    before, settings = weights_digest(base.model), asked(base, batch_size=batch_size)
    folders = saved(base, SETTINGS, tmp_path)
    alone = []
    for folder in folders:
        with load_adapter(base, folder) as model:
            alone.append(generate(model, **settings))
    with load_pack(base, folders) as model:
        assert generation.generate(model, slots=3, **settings) == alone
    assert len({str(answers) for answers in alone}) == 3, "adapters that say different things"
    assert weights_digest(base.model) == before


def test_one_adapter_of_any_kind_can_be_loaded(base: BaseModel, tmp_path: Path) -> None:
    folders = saved(base, [SETTINGS[0], LoraConfig(r=4, lora_alpha=8, use_dora=True)], tmp_path)
    for folder in folders:
        with load_pack(base, [folder]) as model:
            assert generate(model, **asked(base, max_new_tokens=2))
    with pytest.raises(OnlyAloneError), load_pack(base, folders):
        pass


def test_an_adapter_that_computes_in_another_way_is_not_packed(base: BaseModel, tmp_path: Path) -> None:
    unusual = LoraConfig(r=4, lora_alpha=8, extra={"alora_invocation_tokens": [11]})
    folders = saved(base, [SETTINGS[0], unusual], tmp_path)
    with pytest.raises(OnlyAloneError), load_pack(base, folders):
        pass


def test_an_adapter_of_changed_base_weights_is_not_packed(base: BaseModel, tmp_path: Path) -> None:
    """PEFT writes PiSSA and OLoRA so, while lorahydra saves them as plain LoRA."""
    folders = saved(base, SETTINGS[:2], tmp_path)
    file = folders[1] / "adapter_config.json"
    file.write_text(
        file.read_text("utf-8").replace('"init_lora_weights": true', '"init_lora_weights": "olora"'), "utf-8"
    )
    with pytest.raises(OnlyAloneError), load_pack(base, folders):
        pass


def test_a_folder_without_an_adapter_is_one_line(base: BaseModel, tmp_path: Path) -> None:
    [folder] = saved(base, SETTINGS[:1], tmp_path)
    with pytest.raises(ModelError, match="is not an adapter"), load_pack(base, [folder, tmp_path / "none"]):
        pass


@needs_gpu
def test_adapters_answer_on_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name_or_path=str(tiny_model), dtype="float32"))
    settings, folders = asked(base), saved(base, SETTINGS, tmp_path)
    alone = []
    for folder in folders:
        with load_pack(base, [folder]) as model:
            alone.append(generate(model, **settings))
    with load_pack(base, folders) as model:
        assert generation.generate(model, slots=3, **settings) == alone
