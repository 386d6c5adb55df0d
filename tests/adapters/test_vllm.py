"""vLLM gets only adapters that it serves, with the command that serves them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorahydra.adapters.vllm import export_vllm
from lorahydra.errors import ModelError

WEIGHTS = "adapter_model.safetensors"


def changed(adapter: Path, folder: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")
    return folder


def with_rank(adapter: Path, folder: Path, rank: int, part: str = "") -> Path:
    """A copy of an adapter, some of whose layers have another rank; what they add stays."""
    shutil.copytree(adapter, folder)
    weights = load_file(folder / WEIGHTS)
    for name, value in weights.items():
        if part in name:
            shape = (rank, value.shape[1]) if "lora_A" in name else (value.shape[0], rank)
            new = torch.zeros(shape)
            new[: value.shape[0], : value.shape[1]] = value
            weights[name] = new
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def command_of(folder: Path) -> list[str]:
    script = (folder / "serve.sh").read_text("utf-8")
    return shlex.split(script.rpartition("exec ")[2])


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_an_adapter(tiny_adapter: Path, tmp_path: Path) -> None:
    export_vllm(tiny_adapter, tmp_path / "mine, v=2")
    command = command_of(tmp_path / "mine, v=2")
    assert command[:2] == ["vllm", "serve"]
    assert value_of(command, "--max-lora-rank") == "8", "the smallest that vLLM takes"
    assert value_of(command, "--lora-modules") == "mine-v-2=.", "it splits names at a comma and ="
    assert value_of(command, "--dtype") == "float32"
    assert json.loads(value_of(command, "--override-generation-config"))["temperature"] == 0
    assert (tmp_path / "mine, v=2" / value_of(command, "--chat-template")).read_text("utf-8").startswith("{% for m in")
    assert (tmp_path / "mine, v=2" / WEIGHTS).read_bytes() == (tiny_adapter / WEIGHTS).read_bytes()
    assert '`"stop_token_ids": [1]`' in (tmp_path / "mine, v=2" / "README.md").read_text("utf-8")


def test_a_merged_model(tiny_adapter: Path, tmp_path: Path) -> None:
    export_vllm(changed(tiny_adapter, tmp_path / "odd", use_rslora=True), tmp_path / "mine", merged=True)
    command = command_of(tmp_path / "mine")
    assert command[2] == "."
    assert "--enable-lora" not in command
    assert (tmp_path / "mine" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "bias")],
)
def test_what_vllm_does_not_serve(tiny_adapter: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"{words}.*vLLM cannot load as an adapter: add --merged"):
        export_vllm(changed(tiny_adapter, tmp_path / "odd", **settings), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_ranks_and_layers(tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rank 512.*no more than 256"):
        export_vllm(with_rank(tiny_adapter, tmp_path / "r512", 512), tmp_path / "mine")
    export_vllm(with_rank(tiny_adapter, tmp_path / "r40", 40), tmp_path / "r40-out")
    assert value_of(command_of(tmp_path / "r40-out"), "--max-lora-rank") == "64"
    weights = load_file(tiny_adapter / WEIGHTS)
    head = {f"base_model.model.lm_head.lora_{f}.weight": torch.zeros(4, 4) for f in "AB"}
    save_file(weights | head, with_rank(tiny_adapter, tmp_path / "head", 4) / WEIGHTS)
    with pytest.raises(ModelError, match="changes lm_head"):
        export_vllm(tmp_path / "head", tmp_path / "mine")


def test_layers_that_differ_become_uniform(tiny_adapter: Path, tmp_path: Path) -> None:
    part = "layers.1.mlp.up_proj"
    folder = with_rank(tiny_adapter, tmp_path / "mixed", 6, part)
    export_vllm(
        changed(folder, tmp_path / "patterns", rank_pattern={part: 6}, alpha_pattern={part: 3}), tmp_path / "mine"
    )
    settings = json.loads((tmp_path / "mine" / "adapter_config.json").read_text("utf-8"))
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"], settings["alpha_pattern"]) == (
        6,
        6,
        {},
        {},
    )
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "mine" / WEIGHTS)
    for module, scale in ((part, 3 / 6), ("layers.0.self_attn.q_proj", 8 / 4)):
        a, b = (f"base_model.model.model.{module}.lora_{factor}.weight" for factor in "AB")
        assert after[a].shape[0] == after[b].shape[1] == 6
        torch.testing.assert_close(after[b] @ after[a], scale * before[b] @ before[a])


def test_bases(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "quantised")
    metadata = json.loads((folder / "lorahydra.json").read_text("utf-8"))
    for kind in ("int8", "nf4"):
        (folder / "lorahydra.json").write_text(
            json.dumps(metadata | {"model": metadata["model"] | {"quantization": kind}}), "utf-8"
        )
        if kind == "int8":
            with pytest.raises(ModelError, match="int8.*add --merged"):
                export_vllm(folder, tmp_path / kind)
        else:
            export_vllm(folder, tmp_path / kind)
            assert value_of(command_of(tmp_path / kind), "--quantization") == "bitsandbytes"
