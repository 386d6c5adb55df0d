"""Writes GGUF files: a whole model, or an adapter, with the tensors one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError
from lorahydra.modeling.gguf_architectures import GgufArchitecture, add_settings, gguf_architecture, rope_factors
from lorahydra.modeling.huggingface import disk_errors

if TYPE_CHECKING:
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

__all__ = ["GGUF_DTYPES", "write_adapter_gguf", "write_model_gguf"]

GGUF_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""llama.cpp's name of each dtype that is written."""
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
HEAD = "lm_head.weight"

Tensor = tuple[str, "torch.Tensor", str]
"""Name in the file, values, and the dtype in which they are written."""


def write_model_gguf(
    file: Path, model: PreTrainedModel, dtype: str, name: str, add_tokenizer: Callable[[GGUFWriter], None]
) -> None:
    """Write a model of transformers, on the CPU and not quantised, as llama.cpp reads it.

    Vectors (norms and biases) are float32 in any case. A matrix whose rows do not consist of whole blocks of 32 is
    float16 where `q8_0` is asked for.

    Args:
        file: The file to write.
        model: The model.
        dtype: One of `GGUF_DTYPES`, for the matrices.
        name: The model's name in the file.
        add_tokenizer: Writes the tokenizer's metadata.

    Raises:
        ModelError: llama.cpp has no such architecture, or a value is too large for `dtype`.
    """
    import gguf

    config = model.config.get_text_config(decoder=True)
    architecture = gguf_architecture(config)
    with _writer(file, architecture, name, dtype) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        add_settings(writer, config)
        add_tokenizer(writer)
        _write(writer, list(_model_tensors(model, architecture, dtype)))


def write_adapter_gguf(
    file: Path, config: Any, layers: Sequence[tuple[str, torch.Tensor, torch.Tensor]], alpha: float, dtype: str
) -> None:
    """Write an adapter as llama.cpp's `--lora` reads it: it adds `alpha / rank · b @ a` to the base's weights.

    Args:
        file: The file to write.
        config: The base model's configuration.
        layers: For each adapted layer its name in transformers, `a` (rank, inputs) and `b` (outputs, rank).
        alpha: The same for all layers.
        dtype: One of `GGUF_DTYPES` but `q8_0`, whose blocks are longer than most ranks.

    Raises:
        ModelError: llama.cpp has no such architecture or layer, or a value is too large for `dtype`.
    """
    import gguf

    text = config.get_text_config(decoder=True)
    architecture = gguf_architecture(text)
    tensors = []
    for module, a, b in layers:
        weight = f"{module}.weight"
        if weight == HEAD and text.tie_word_embeddings:
            raise ModelError(
                "the adapter changes lm_head, which shares the weights of the embeddings in this base model; llama.cpp "
                "cannot change one of them alone: add --merged"
            )
        name = architecture.tensor_name(weight)
        if name is None or "token_embd" in name:
            raise ModelError(f"llama.cpp cannot adapt {module} of a {text.model_type} model: add --merged")
        tensors += [(f"{name}.lora_a", a, dtype), (f"{name}.lora_b", architecture.rows(weight, b), dtype)]
    with _writer(file, architecture, file.stem, dtype) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        _write(writer, tensors)


def _model_tensors(model: PreTrainedModel, architecture: GgufArchitecture, dtype: str) -> Iterator[Tensor]:
    import torch

    config = model.config.get_text_config(decoder=True)
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", torch.tensor(factors), "float32"
    for name, value in model.state_dict().items():
        if name == HEAD and config.tie_word_embeddings:
            continue
        written = architecture.tensor_name(name)
        if written is None:
            raise ModelError(f"llama.cpp has no place for the tensor {name} of a {config.model_type} model")
        yield written, architecture.rows(name, value), dtype if value.ndim > 1 else "float32"


@contextmanager
def _writer(file: Path, architecture: GgufArchitecture, name: str, dtype: str) -> Iterator[GGUFWriter]:
    import gguf

    writer = gguf.GGUFWriter(file, architecture.name)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    try:
        yield writer
    finally:
        writer.close()


def _write(writer: GGUFWriter, tensors: Sequence[Tensor]) -> None:
    """Write all metadata, and then one tensor after the other, so that only one is held twice."""
    import gguf
    import numpy as np

    kinds = [_kind(value, dtype) for _, value, dtype in tensors]
    for (name, value, _), kind in zip(tensors, kinds, strict=True):
        shape = gguf.quant_shape_to_byte_shape(value.shape, kind)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            stored: Any = np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16
            writer.add_tensor_info(name, tuple(value.shape), np.dtype(stored), int(np.prod(shape)), kind)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (name, value, dtype), kind in zip(tensors, kinds, strict=True):
        values = value.detach().float().contiguous().numpy()
        with np.errstate(over="ignore"):
            data = gguf.quantize(values, kind)
        if not np.isfinite(gguf.dequantize(data, kind)).all():
            raise ModelError(f"the values of {name} are too large for {dtype}: choose another --dtype")
        with disk_errors():
            writer.write_tensor_data(data)


def _kind(value: torch.Tensor, dtype: str) -> GGMLQuantizationType:
    import gguf

    kind = gguf.GGMLQuantizationType[GGUF_DTYPES[dtype]]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return kind if value.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16
