"""Loads base models: frozen, in evaluation mode, one per process.

```python
base = load_base(config.model)
base.model, base.tokenizer, base.device
```
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ConfigError, LorahydraError, ModelError, library_errors, reason
from lorahydra.modeling.devices import resolve_device, resolve_dtype
from lorahydra.modeling.huggingface import loading, no_loading_report, no_progress_bars
from lorahydra.modeling.memory import keep_to_share
from lorahydra.modeling.model_files import Source, check_tokenizer, check_weights, content_digest, locate, weight_files
from lorahydra.modeling.vocabulary import check_vocabulary
from lorahydra.utils.progress import Progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BaseModel",
    "load_base",
    "load_context_window",
    "load_copy",
    "load_tokenizer",
    "resolve_device",
    "resolve_dtype",
]

logger = logging.getLogger(__name__)


@dataclass
class BaseModel:
    """A frozen causal language model and what belongs to it."""

    model: PreTrainedModel
    """In evaluation mode, no parameter trainable, on `device` in `dtype`."""
    tokenizer: PreTrainedTokenizerBase
    """Has a padding token; its padding side is the caller's matter."""
    device: torch.device
    dtype: torch.dtype
    source: str
    """What the user can write again as `model.name_or_path`: packaged name, absolute path or hub id."""
    digest: str | None
    """For lineage: `git:<commit>` of a hub model, else `sha256:<digest>` of the wheel or the local files."""
    load_seconds: float
    """How long loading took, in seconds."""


@dataclass
class _Held:
    """The one base model that this process holds for a role."""

    key: object = None
    base: BaseModel | None = None


_held: dict[str, _Held] = {}
_lock = threading.Lock()


def load_base(config: ModelConfig, *, role: str = "tuned") -> BaseModel:
    """Load the base model that `config` names, or give the one that is loaded already.

    A process holds one base model for each role: the same settings give the same object, other settings free it
    first (what the caller still refers to stays in memory).

    Args:
        config: The model's settings; `chat_template` plays no part here.
        role: What it is for: a model that judges does not replace the one that is tuned.

    Raises:
        ModelError: The model is unknown, broken, incomplete, or not a causal language model.
        ConfigError: The device, dtype or attention kernel is not available.
        ServiceError: The model is on the hub, not in its cache, and the hub cannot be reached.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    keep_to_share(device)
    with _lock:
        source = locate(config)
        key = (source, device, dtype, config.attn_implementation)
        held = _held.setdefault(role, _Held())
        if held.base is None or held.key != key:
            _free(held)
            held.base = _load(source, device, dtype, config.attn_implementation)
            held.key = key
        return held.base


def load_copy(config: ModelConfig) -> BaseModel:
    """Load a base model that is the caller's own, to change and to drop; the ones that are held stay as they are.

    Weights are as the checkpoint stores them (those of GGUF files, which are no floats, in float32), also where the CPU
    does not compute in their dtype.

    Args:
        config: The model's settings; it is loaded on the CPU with the default kernels, whatever they say.

    Raises:
        ModelError: As `load_base`.
        ServiceError: As `load_base`.
    """
    source = locate(config)
    return _load(source, resolve_device("cpu"), _stored_dtype(source), None)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model that `config` names; no weights are read or downloaded.

    A model without a padding token gets its end-of-text token as one: padding is masked, so any token does.

    Raises:
        ModelError: The model is unknown, or its tokenizer is missing, broken or has no token to pad with.
        ServiceError: The model is on the hub, not in its cache, and the hub cannot be reached.
    """
    return _tokenizer(locate(config, weights=False))


def load_context_window(config: ModelConfig) -> int | None:
    """How many tokens the model that `config` names takes at most; None where it does not say. No weights are read.

    Raises:
        ModelError: The model is unknown, or its configuration cannot be used.
        ServiceError: The model is on the hub, not in its cache, and the hub cannot be reached.
    """
    source = locate(config, weights=False)
    if source.gguf_file:
        return None
    window: int | None = getattr(_config(source).get_text_config(decoder=True), "max_position_embeddings", None)
    return window


def _free(held: _Held) -> None:
    """Drop the base model that is held, and give its memory back."""
    import torch

    if held.base is not None:
        held.base = held.key = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _load(source: Source, device: torch.device, dtype: torch.dtype, attention: str | None) -> BaseModel:
    import torch

    from lorahydra.modeling.cpu_linear import use_onednn

    start = time.perf_counter()
    check_weights(source)
    if source.gguf_file:
        tokenizer, model = _from_gguf(source, source.gguf_file, dtype, attention)
    else:
        tokenizer = _tokenizer(source)
        _check_architecture(source)
        model = _pretrained(source, dtype, attention)
    try:
        model.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise ModelError(
            f"{source.name} needs {size:.1f} GiB, more than is free on {device}: free it, choose a smaller "
            "model or model.device=cpu"
        ) from error
    check_vocabulary(model, tokenizer, source.name)
    model.requires_grad_(False).eval()
    use_onednn(model)
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    digest = content_digest(source)
    return BaseModel(model, tokenizer, device, dtype, source.name, digest, time.perf_counter() - start)


def _from_gguf(
    source: Source, gguf_file: str, dtype: torch.dtype, attention: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from lorahydra.modeling.gguf import load_gguf, tensor_count

    file = source.folder / gguf_file
    logger.info("Reading %s (%.0f MB): 100 MB take half a minute or more", gguf_file, file.stat().st_size / 1e6)
    with Progress().task(f"Reading {gguf_file}", tensor_count(file)) as advance:
        tokenizer = _tokenizer(source)
        return tokenizer, load_gguf(source.folder, gguf_file, dtype, attention, on_tensor=lambda: advance(1, ""))


def _stored_dtype(source: Source) -> torch.dtype:
    """The half precision that all weights of a checkpoint are stored in; float32 where it is not one for all."""
    import torch
    from safetensors import safe_open

    if source.gguf_file:
        return torch.float32
    check_weights(source)
    found = set()
    for path in weight_files(source.folder):
        with safe_open(str(path), framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in list(file.keys())}
    known = {"BF16": torch.bfloat16, "F16": torch.float16}
    return known[found.pop()] if len(found) == 1 and found <= set(known) else torch.float32


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    check_tokenizer(source)
    options = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    with loading(f"the tokenizer of {source.name} cannot be read"), no_progress_bars():
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(source.folder), local_files_only=True, trust_remote_code=False, **options
        )
        # Settings of a wrong type show in use only.
        tokenizer("A text.", add_special_tokens=True)
        if tokenizer.pad_token_id is None:
            token = tokenizer.eos_token or tokenizer.unk_token
            if token is None:
                raise ModelError(
                    f"the tokenizer of {source.name} has no padding, end-of-text or unknown token to pad with"
                )
            tokenizer.pad_token = token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def _config(source: Source) -> Any:
    from transformers import AutoConfig

    with loading(f"the config.json of {source.name} cannot be used"):
        return AutoConfig.from_pretrained(str(source.folder), local_files_only=True, trust_remote_code=False)


def _check_architecture(source: Source) -> None:
    """Refuse encoders and sequence-to-sequence models: transformers gives some of them a random head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _config(source)
    with loading(f"the config.json of {source.name} cannot be used"):
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        causal = {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}
        architectures = config.architectures or []
        known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
        fits = known and (not architectures or causal.intersection(architectures))
        what = ", ".join(architectures) or config.model_type
    if not fits:
        raise ModelError(
            f"{source.name} is not a causal language model ({what}): choose one that generates text, such as "
            "Qwen/Qwen3-0.6B or the packaged smollm2-135m-instruct"
        )


def _pretrained(source: Source, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}

    def unusable(error: Exception) -> LorahydraError:
        if attention and ("attn" in str(error) or "attention" in str(error).lower()):
            return ConfigError(f"model.attn_implementation={attention} cannot be used: {reason(error)}")
        if "ignore_mismatched_sizes" in str(error):
            return ModelError(
                f"the weights of {source.name} have other shapes than its config.json says: copy or download the "
                "model again"
            )
        return ModelError(f"{source.name} cannot be loaded: {reason(error)}")

    with library_errors(unusable), no_progress_bars(), no_loading_report():
        model, report = AutoModelForCausalLM.from_pretrained(
            str(source.folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights of {source.name} lack {len(missing)} tensors that its config.json asks for (such "
            f"as {missing[0]}): copy or download the model again"
        )
    if unused := sorted(report["unexpected_keys"]):
        logger.warning(
            "%s: %d tensors of its weights have no place in the model of its config.json and are not used (such as %s)",
            source.name,
            len(unused),
            unused[0],
        )
    loaded: PreTrainedModel = model
    return loaded
