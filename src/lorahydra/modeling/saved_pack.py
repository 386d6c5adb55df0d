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
from lorahydra.modeling.peft_format import adapter_weights, check_adapter
from lorahydra.modeling.single import OnlyAloneError
from lorahydra.names import ADAPTER_WEIGHTS_FILE

if TYPE_CHECKING:
    import peft

__all__ = ["load_pack"]


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
        with load_adapter(base, folders[0]) as model:
            if base.device.type == "cpu":
                yield model
                return
            config, weights = adapter_weights(model)
            adapters = [NewAdapter(config, {name: value.detach().cpu() for name, value in weights.items()})]
            if not _is_plain(base, adapters[0]):
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
    config = adapter.config
    if config.use_dora or config.rank_pattern or config.alpha_pattern or config.modules_to_save or config.lora_bias:
        return False
    modules = dict(base.model.named_modules())
    return (
        len(adapter.weights) == 2 * len(adapter.layers)
        and all(isinstance(modules.get(layer), nn.Linear | Conv1D) for layer in adapter.layers)
        and all(value.shape[0] == config.r for name, value in adapter.weights.items() if ".lora_A." in name)
    )
