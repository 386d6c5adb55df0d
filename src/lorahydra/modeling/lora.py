"""Attaches LoRA adapters to a base model while a block runs, and removes them without a trace.

```python
base = load_base(config.model)
with adapter(base, config.lora, seed=42) as peft_model:
    ...  # train
    save_adapter(peft_model, folder)
with load_adapter(base, folder) as peft_model:
    ...  # generate
```
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorahydra.config.checks import only_keys
from lorahydra.config.schema import LoraConfig
from lorahydra.errors import ConfigError, ModelError, library_errors, reason
from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.devices import cpu_threads
from lorahydra.modeling.peft_format import check_adapter, remember_start, save_adapter
from lorahydra.modeling.restoring import restored
from lorahydra.modeling.targets import check_targets

if TYPE_CHECKING:
    import peft

__all__ = [
    "adapter",
    "attach_saved",
    "load_adapter",
    "peft_config",
    "random_state",
    "save_adapter",
    "seeded",
    "set_random_state",
]

OWN_FIELDS = ("plus_ratio", "extra")
"""Fields of the adapter's settings that are not PEFT's."""
NOT_EXTRA = {
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    "inference_mode",
    # They change the base model, need data, or keep weights that are not an adapter's.
    *("layer_replication", "modules_to_save", "trainable_token_indices", "target_parameters", "megatron_config"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
}
"""Fields of PEFT's that `lora.extra` cannot have."""


@contextmanager
def adapter(base: BaseModel, config: LoraConfig, seed: int) -> Iterator[peft.PeftModel]:
    """Attach a new adapter to `base`, in training mode, and remove it when the block ends, even by an exception.

    Only the adapter is trainable. Its weights are float32 even on a bfloat16 base: small updates vanish in 8 bits of
    mantissa, and an adapter is too small for the memory to matter. Initialisation has a separate random generator, so
    the same seed gives the same adapter bit for bit, and the caller's random state does not change.

    Afterwards `base`, which takes one adapter at a time, is as it was: module tree, weights (bit for bit, even after
    PiSSA, which replaces them), hooks, flags and configuration. The yielded model cannot be used afterwards. Merging
    into the base in place is not undone: use a copy for that.
    """
    with restored(base.model):
        # The many small decompositions of PiSSA gain little from more threads, and become 50 times slower if other
        # processes keep the cores busy. On one thread they also do not depend on the number of threads.
        with seeded(seed, base.device), cpu_threads(1):
            model = _attach(base, config)
        remember_start(model, base.source)
        yield model.train()


@contextmanager
def load_adapter(base: BaseModel, folder: Path | str) -> Iterator[peft.PeftModel]:
    """Attach the saved adapter in `folder` to `base` for inference, and remove it when the block ends."""
    path = check_adapter(Path(folder))
    with restored(base.model):
        yield attach_saved(base, path)


def attach_saved(base: BaseModel, folder: Path) -> peft.PeftModel:
    """Attach the saved adapter in a folder that passed `check_adapter` to `base`, permanently, for inference."""
    from peft import PeftModel

    what = f"the adapter in {folder} does not fit the base model {base.source}: use the base model it was trained on"
    with library_errors(lambda error: ModelError(f"{what} ({reason(error)})")), _peft_warnings():
        model = PeftModel.from_pretrained(base.model, str(folder), torch_device=str(base.device))
    return model.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and put its random state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Torch's random state on the CPU and, if that is another device, on `device`."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)


@contextmanager
def _peft_warnings() -> Iterator[None]:
    """Hide PEFT's needless warnings, and turn the one that means a wrong result into an error."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # An adapter on an output head that shares its weights is merged with weights of its own (`merging`).
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer", UserWarning)
        # GPT-2 keeps its weights transposed, which PEFT notices itself.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        # If weights are missing, the adapter would silently do nothing.
        warnings.filterwarnings("error", "Found missing adapter keys")
        yield


def peft_config(config: LoraConfig) -> peft.LoraConfig:
    """PEFT's configuration of an adapter.

    Raises:
        ConfigError: PEFT does not take a field of `lora.extra`, or its value.
    """
    import peft

    values = {name: value for name, value in vars(config).items() if name not in OWN_FIELDS}
    allowed = inspect.signature(peft.LoraConfig).parameters.keys() - values.keys() - NOT_EXTRA
    only_keys("lora.extra", config.extra, allowed)
    with library_errors(lambda error: ConfigError(f"lora.extra={config.extra} is not allowed: {reason(error)}")):
        return peft.LoraConfig(task_type=peft.TaskType.CAUSAL_LM, **values, **config.extra)


def _attach(base: BaseModel, config: LoraConfig) -> peft.PeftModel:
    import peft

    check_targets(base, config)
    settings = peft_config(config)
    try:
        with _peft_warnings():
            return peft.get_peft_model(base.model, settings, autocast_adapter_dtype=True)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"this adapter cannot be put on {base.source}: {reason(error)}") from error
