"""Saved adapters on their base model for inference: several side by side, or one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorahydra.modeling.base import BaseModel
from lorahydra.modeling.lora import load_adapter
from lorahydra.modeling.packing import NewAdapter, packed
from lorahydra.modeling.peft_format import adapter_weights, changes_base, check_adapter
from lorahydra.modeling.single import OnlyAloneError
from lorahydra.names import ADAPTER_WEIGHTS_FILE

if TYPE_CHECKING:
    import peft

__all__ = ["load_pack"]

PLAIN_FIELDS = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    "inference_mode",
}
"""Fields of PEFT's configuration that may differ from its defaults in an adapter that is packed."""


@contextmanager
def load_pack(base: BaseModel, folders: Sequence[Path]) -> Iterator[PreTrainedModel]:
    """Attach saved adapters side by side for inference, and remove them when the block ends.

    An adapter alone is attached with PEFT's layers where these are as quick: on a CPU, or if it cannot be packed.

    Args:
        base: The base model that the adapters were trained on.
        folders: The adapters, in PEFT's format.

    Yields:
        The model in evaluation mode; it takes the rows of the first adapter, of the second, and so on.

    Raises:
        ModelError: A folder has no LoRA adapter, or one that is broken or for another base model.
        OnlyAloneError: There are several, and they are not alike.
    """
    if len(folders) > 1:
        adapters = [_read(folder) for folder in folders]
        if not all(_is_plain(base, adapter) and adapter.layers == adapters[0].layers for adapter in adapters):
            raise OnlyAloneError("adapters of different kinds can only be loaded alone")
    else:
        # PEFT finds out what is wrong with an adapter.
        with load_adapter(base, folders[0]) as model:
            if base.device.type == "cpu":
                yield model
                return
            config, weights = adapter_weights(model)
            adapters = [NewAdapter(config, {name: value.detach().cpu() for name, value in weights.items()})]
        if not _is_plain(base, adapters[0]):
            with load_adapter(base, folders[0]) as model:
                yield model
            return
    with packed(base, adapters, seed=0):
        yield base.model.eval()


def _read(folder: Path) -> NewAdapter:
    import peft
    from safetensors.torch import load_file

    path = check_adapter(folder)
    config: peft.LoraConfig = peft.LoraConfig.from_pretrained(str(path))
    return NewAdapter(config, load_file(path / ADAPTER_WEIGHTS_FILE))


def _is_plain(base: BaseModel, adapter: NewAdapter) -> bool:
    """Whether an adapter consists of two matrices for each of some linear layers, all of one rank and scale."""
    import peft

    config, plain = adapter.config, peft.LoraConfig().to_dict()
    if changes_base(config.init_lora_weights) or any(
        value != plain[name] for name, value in config.to_dict().items() if name not in PLAIN_FIELDS
    ):
        return False
    modules = dict(base.model.named_modules())
    return (
        len(adapter.weights) == 2 * len(adapter.layers)
        and all(isinstance(modules.get(layer), nn.Linear | Conv1D) for layer in adapter.layers)
        and all(value.shape[0] == config.r for name, value in adapter.weights.items() if ".lora_A." in name)
    )
