"""What others get of an adapter, and that PEFT alone loads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from lorahydra.adapters.bundle import bundle
from lorahydra.adapters.find import FoundAdapter
from lorahydra.modeling.metadata import read_metadata
from lorahydra.modeling.packaged import public_name

FILES = {"adapter_config.json", "adapter_model.safetensors", "lorahydra.json", "README.md"}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        answer: torch.Tensor = model(torch.tensor([[65, 66, 67]])).logits
    return answer


def test_a_bundle_loads_with_peft_alone(
    tiny_adapter: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = shutil.copytree(tiny_adapter, tmp_path / "best")
    (best / "code").mkdir()
    for name in ("MLmodel", "code/pyfunc.py"):  # what MLflow's model has beside the adapter
        (best / name).write_text("")
    files = bundle(FoundAdapter("mine", best), "Mine", base="someone/tiny")
    assert set(files) == FILES
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert read_metadata(folder).model.name_or_path == "someone/tiny"

    shutil.copytree(tiny_model, folder / "someone" / "tiny")  # as if the hub had it
    monkeypatch.chdir(folder)
    lines, *_ = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(lines.splitlines()) == 3
    names: dict[str, Any] = {}
    exec(lines, names)
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tiny_adapter))
    assert torch.equal(logits(names["model"]), logits(expected))
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(".")), logits(expected))


def test_a_base_without_a_name_on_the_hub(tiny_adapter: Path) -> None:
    files = bundle(FoundAdapter("mine", tiny_adapter), "Mine")
    place = read_metadata(tiny_adapter).model.name_or_path
    assert json.loads(bytes(files["adapter_config.json"]))["base_model_name_or_path"] == place
    card = bytes(files["README.md"]).decode()
    assert "with the place of the base model on your machine" in card
    assert str(Path(place).parent) not in card
    assert "in `float32`" in card


def test_names_that_other_programs_know() -> None:
    cached = "/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12"
    assert public_name(cached) == "Qwen/Qwen3-0.6B"
    assert public_name("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("/srv/models/mine") == "/srv/models/mine"
