"""Reads a model from its files: tokenizer, configuration and weights, with a clear error for each broken file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from lorahydra.errors import ConfigError, LorahydraError, ModelError, library_errors, reason
from lorahydra.modeling.huggingface import loading, no_loading_report, no_progress_bars
from lorahydra.modeling.model_files import ModelFiles, check_tokenizer, check_weights, weight_files
from lorahydra.modeling.quantization import quantization_config
from lorahydra.utils.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["read_config", "read_model", "read_tokenizer", "stored_dtype"]

logger = logging.getLogger(__name__)


def read_model(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, quantization: str | None, attention: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Read the tokenizer and the model, onto the CPU or, if it is quantised, onto `device`.

    Without `attention`, transformers chooses the kernel.
    """
    _check_not_quantized(files, quantization)
    check_weights(files)
    if files.gguf_file:
        return _from_gguf(files, files.gguf_file, dtype, attention)
    tokenizer = read_tokenizer(files)
    _check_architecture(files)
    return tokenizer, _from_safetensors(files, device, dtype, quantization, attention)


def _from_gguf(
    files: ModelFiles, gguf_file: str, dtype: torch.dtype, attention: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from lorahydra.modeling.gguf import load_gguf, tensor_count

    file = files.folder / gguf_file
    logger.info("Reading %s (%.0f MB): 100 MB take half a minute or more", gguf_file, file.stat().st_size / 1e6)
    with Progress().task(f"Reading {gguf_file}", tensor_count(file)) as advance:
        tokenizer = read_tokenizer(files)
        return tokenizer, load_gguf(files.folder, gguf_file, dtype, attention, on_tensor=lambda: advance(1, ""))


def stored_dtype(files: ModelFiles) -> torch.dtype:
    """The half precision in which all weights of a checkpoint are stored; float32 if they differ."""
    from safetensors import safe_open

    if files.gguf_file:
        return torch.float32
    check_weights(files)
    dtypes = set()
    for path in weight_files(files.folder):
        with safe_open(str(path), framework="pt") as file:
            dtypes |= {file.get_slice(name).get_dtype() for name in list(file.keys())}
    half = {"BF16": torch.bfloat16, "F16": torch.float16}
    return half.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32


def read_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    check_tokenizer(files)
    options = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    with loading(f"the tokenizer of {files.name} cannot be read"), no_progress_bars():
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(files.folder), local_files_only=True, trust_remote_code=False, **options
        )
        # Settings of a wrong type cause errors only in use.
        tokenizer("A text.", add_special_tokens=True)
        if tokenizer.pad_token_id is None:
            token = tokenizer.eos_token or tokenizer.unk_token
            if token is None:
                raise ModelError(
                    f"the tokenizer of {files.name} has no padding, end-of-text or unknown token to pad with"
                )
            tokenizer.pad_token = token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def read_config(files: ModelFiles) -> Any:
    """The configuration, as transformers reads it."""
    from transformers import AutoConfig

    options = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    with loading(f"the {files.gguf_file or 'config.json'} of {files.name} cannot be used"):
        return AutoConfig.from_pretrained(str(files.folder), local_files_only=True, trust_remote_code=False, **options)


def _check_architecture(files: ModelFiles) -> None:
    """Refuse encoders and sequence-to-sequence models: transformers gives some of them a random head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_config(files)
    with loading(f"the config.json of {files.name} cannot be used"):
        names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        causal = {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}
        architectures = config.architectures or []
        is_known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
        fits = is_known and (not architectures or causal.intersection(architectures))
        what = ", ".join(architectures) or config.model_type
    if not fits:
        raise ModelError(
            f"{files.name} is not a causal language model ({what}): choose one that generates text, such as "
            "Qwen/Qwen3-0.6B or the packaged smollm2-135m-instruct"
        )


def _check_not_quantized(files: ModelFiles, quantization: str | None) -> None:
    """Refuse to quantise weights again: rounding them twice loses more."""
    if quantization and (files.gguf_file or _is_quantized(files)):
        raise ConfigError(
            f"model.quantization={quantization} cannot be used with {files.name}, which is a GGUF file or quantised "
            "already: leave it out, or choose a model in full precision"
        )


def _is_quantized(files: ModelFiles) -> bool:
    return getattr(read_config(files), "quantization_config", None) is not None


def _from_safetensors(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, quantization: str | None, attention: str | None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if quantization:
        options["quantization_config"] = quantization_config(quantization, dtype)
    if quantization or _is_quantized(files):
        options["device_map"] = {"": device}

    def unusable(error: Exception) -> LorahydraError:
        if isinstance(error, torch.OutOfMemoryError):
            return ModelError(
                f"{files.name} needs more memory than is free on {device}, even with model.quantization="
                f"{quantization}: free some memory, or choose a smaller model"
            )
        if attention and ("attn" in str(error) or "attention" in str(error).lower()):
            return ConfigError(f"model.attn_implementation={attention} cannot be used: {reason(error)}")
        if "ignore_mismatched_sizes" in str(error):
            return ModelError(
                f"the weights of {files.name} have other shapes than its config.json says: copy or download the "
                "model again"
            )
        return ModelError(f"{files.name} cannot be loaded: {reason(error)}")

    with library_errors(unusable), no_progress_bars(), no_loading_report():
        model, report = AutoModelForCausalLM.from_pretrained(
            str(files.folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights of {files.name} lack {len(missing)} tensors that its config.json asks for (such "
            f"as {missing[0]}): copy or download the model again"
        )
    if unused := sorted(report["unexpected_keys"]):
        logger.warning(
            "%s: %d tensors of its weights have no place in the model of its config.json and are not used (such as %s)",
            files.name,
            len(unused),
            unused[0],
        )
    loaded: PreTrainedModel = model
    return loaded
