"""Loads base models: frozen, in evaluation mode, one per process.

```python
base = load_base(config.model)
base.model, base.tokenizer, base.device
```
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError
from lorahydra.modeling.cpu_linear import use_onednn
from lorahydra.modeling.devices import resolve_device, resolve_dtype
from lorahydra.modeling.fused_mlp import use_fused_mlps
from lorahydra.modeling.fused_norms import use_fused_norms
from lorahydra.modeling.memory import keep_to_share, release_memory
from lorahydra.modeling.model_files import ModelFiles, content_digest, locate
from lorahydra.modeling.pretrained import read_config, read_model, read_tokenizer, stored_dtype
from lorahydra.modeling.quantization import check_quantization, use_dequantized_products
from lorahydra.modeling.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BaseModel", "load_base", "load_context_window", "load_copy", "load_tokenizer", "prepare"]


@dataclass
class BaseModel:
    """A frozen causal language model with its tokenizer, device and origin."""

    model: PreTrainedModel
    """The model in evaluation mode, no parameter trainable, on `device` in `dtype` (or with quantised weights)."""
    tokenizer: PreTrainedTokenizerBase
    """Has a padding token; its padding side is up to the caller."""
    device: torch.device
    dtype: torch.dtype
    source: str
    """A value for `model.name_or_path` that names this model: packaged name, absolute path or hub id."""
    digest: str | None
    """Digest for lineage: `git:<commit>` of a hub model, else `sha256:<digest>` of the wheel or the local files; with
    `+nf4` or `+int8` if it was quantised here."""


_loaded: dict[str, tuple[object, BaseModel]] = {}
"""By role, the one base model that this process holds for it, and the settings that it was loaded with."""
_lock = threading.Lock()


def load_base(config: ModelConfig, *, role: str = "tuned") -> BaseModel:
    """Load the base model that `config` names, or return it if it is loaded already; `chat_template` is ignored.

    A process holds one base model for each role, because a model that judges does not replace the one that is tuned.
    The same settings give the same object; other settings free the old one first (objects that the caller still refers
    to stay in memory).
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    check_quantization(config, device)
    keep_to_share(device)
    with _lock:
        files = locate(config)
        settings = (files, device, dtype, config.quantization, config.attn_implementation)
        if role not in _loaded or _loaded[role][0] != settings:
            if _loaded.pop(role, None) is not None:
                release_memory()
            _loaded[role] = (settings, _load(*settings))
        return _loaded[role][1]


def load_copy(config: ModelConfig) -> BaseModel:
    """Load a base model for the caller alone, who may change it; the models that the process holds stay as they are.

    It is on the CPU, with the default kernels. Weights are as the checkpoint stores them (those of GGUF files in
    float32), even if the CPU does not compute in their dtype. With `config.quantization` they are quantised from
    `config.dtype`, as `load_base` does it.
    """
    device = resolve_device("cpu")
    check_quantization(config, device)
    files = locate(config)
    as_stored = config.quantization is None or config.dtype == "auto"
    dtype = stored_dtype(files) if as_stored else getattr(torch, config.dtype)
    return _load(files, device, dtype, config.quantization, None)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that `config` names; no weights are read or downloaded.

    A model without a padding token gets its end-of-text token as one: padding is masked, so any token does.
    """
    return read_tokenizer(locate(config, weights=False))


def load_context_window(config: ModelConfig) -> int | None:
    """The largest number of tokens that the model takes; None if it does not say. No weights are read."""
    files = locate(config, weights=False)
    if files.gguf_file:
        return None
    window: int | None = getattr(read_config(files).get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def prepare(model: nn.Module) -> None:
    """Freeze a model that is on its device, and let its layers compute with less time and memory."""
    model.requires_grad_(False).eval()
    use_onednn(model)
    use_dequantized_products(model)
    use_fused_norms(model)
    use_fused_mlps(model)


def _load(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, quantization: str | None, attention: str | None
) -> BaseModel:
    tokenizer, model = read_model(files, device, dtype, quantization, attention)
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise ModelError(
            f"{files.name} needs {size:.1f} GiB, more than is free on {device}: free some memory, choose a "
            "smaller model, or set model.quantization=nf4 or model.device=cpu"
        ) from error
    check_vocabulary(model, tokenizer, files.name)
    prepare(model)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    digest = content_digest(files) + (f"+{quantization}" if quantization else "")
    return BaseModel(model, tokenizer, device, dtype, files.name, digest)
