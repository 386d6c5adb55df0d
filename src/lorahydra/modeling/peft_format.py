"""Adapters on disk, as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lorahydra.errors import ModelError, OutputError, reason
from lorahydra.modeling.huggingface import disk_errors
from lorahydra.modeling.packaged import public_name
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lorahydra.utils.files import replaced_dir, writing

if TYPE_CHECKING:
    import peft
    import torch

__all__ = ["adapter_weights", "changes_base", "check_adapter", "remember_start", "save_adapter", "write_adapter"]

KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of PEFT's `init_lora_weights` that leave the base model's weights as they are."""


@dataclass
class _Start:
    """State of a freshly attached adapter that is needed to save it later."""

    base_source: str
    weights: dict[str, torch.Tensor]
    """Initial adapter weights on the CPU; only for initialisations that change the base model, else empty."""


_starts: WeakKeyDictionary[torch.nn.Module, _Start] = WeakKeyDictionary()


def changes_base(init_lora_weights: object) -> bool:
    """Whether an adapter is attached to other weights than those of its base model, as with PiSSA or OLoRA."""
    return init_lora_weights not in KEEPS_BASE


def remember_start(model: peft.PeftModel, base_source: str) -> None:
    """Keep what `save_adapter` needs of a freshly attached adapter, before any training."""
    is_changed = changes_base(model.peft_config["default"].init_lora_weights)
    weights = {k: v.detach().cpu().clone() for k, v in _weights(model).items()} if is_changed else {}
    _starts[model] = _Start(base_source, weights)


def save_adapter(model: peft.PeftModel, folder: Path | str) -> None:
    """Write the adapter of `model`, inside its block, to `folder` in PEFT's format, as a whole or not at all.

    An existing adapter is replaced, and nothing else. The result always belongs on the *original* base model: PiSSA
    trains `W − s·B₀A₀ + s·BA`, so the difference `s·(BA − B₀A₀)` is written as an ordinary LoRA of rank `2r` with
    `A' = [A; A₀]` and `B' = [B, −B₀]` (PiSSA, arXiv 2404.02948, appendix). On a bfloat16 base the two differ
    by the rounding of `W − s·B₀A₀`.
    """
    config, weights = adapter_weights(model)
    start = _starts.get(model)
    if start is not None and start.weights:
        weights = _difference({name: value.detach().cpu() for name, value in weights.items()}, start.weights, config)
    write_adapter(config, weights, folder)


def adapter_weights(model: peft.PeftModel) -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """The adapter of `model`, as it would be saved: a copy of its configuration, and its weights by PEFT's names."""
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    if (start := _starts.get(model)) is not None:
        # `lorahydra.json` keeps the name that lorahydra loads it by.
        config.base_model_name_or_path = public_name(start.base_source)
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)
    return config, _weights(model)


def write_adapter(config: peft.LoraConfig, weights: Mapping[str, torch.Tensor], folder: Path | str) -> None:
    """Write an adapter, with its weights by PEFT's names, to `folder` as `save_adapter` does."""
    from safetensors.torch import save_file

    path = Path(folder)
    _check_replaceable(path)
    with replaced_dir(path) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        with disk_errors():
            save_file(tensors, str(temporary / ADAPTER_WEIGHTS_FILE), metadata={"format": "pt"})
        config.save_pretrained(str(temporary))


def check_adapter(folder: Path) -> Path:
    """Check that `folder` holds a LoRA adapter that can be loaded without running foreign code."""
    from safetensors import SafetensorError, safe_open

    config = folder / ADAPTER_CONFIG_FILE
    if not config.is_file():
        raise ModelError(f"{folder} is not an adapter: it has no {ADAPTER_CONFIG_FILE}")
    try:
        settings = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config} is not valid JSON ({reason(error)}): the adapter is broken") from error
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise ModelError(f"{config} describes an adapter of type {kind}: only LORA adapters can be used")
    weights = folder / ADAPTER_WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS_FILE}: adapters are read from safetensors files only")
    try:
        with safe_open(str(weights), framework="numpy") as file:  # only names are read, for which torch is not needed
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{weights} is damaged ({reason(error)}): save or download the adapter again") from error
    return folder


def _weights(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    # Embeddings never change here; looking whether they did would ask the hub for the base model's
    # configuration.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def _difference(tuned: dict[str, torch.Tensor], start: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Stack the tuned and the negated initial weights, and adjust `config` to the doubled rank."""
    # Imported here, so that reading an adapter's files does not take seconds.
    import torch

    # The scale of rsLoRA, α/√r, cannot be kept with a whole number α at rank 2r, so it goes into B.
    scale = config.lora_alpha / config.r**0.5 if config.use_rslora else 1.0
    config.lora_alpha = 2 * (config.r if config.use_rslora else config.lora_alpha)
    config.r *= 2
    config.use_rslora = False
    config.init_lora_weights = True
    stacked = {}
    for name, value in tuned.items():
        if ".lora_A." in name:
            stacked[name] = torch.cat([value, start[name]], dim=0)
        else:
            stacked[name] = torch.cat([value, -start[name]], dim=1) * scale
    return stacked


def _check_replaceable(path: Path) -> None:
    with writing(path):
        is_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
        taken = path.exists() and not (path.is_dir() and (is_adapter or not any(path.iterdir())))
    if taken:
        raise OutputError(f"cannot write the adapter to {path}: something else is there; choose another folder")
