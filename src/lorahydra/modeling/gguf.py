"""GGUF files: dequantised to an ordinary model of transformers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError
from lorahydra.modeling.huggingface import loading, no_loading_report, no_progress_bars, save_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["convert_gguf", "load_gguf", "tensor_count"]

HEADER = struct.Struct("<4sIQ")
"""Magic number, version and number of tensors (GGUF 2 and 3)."""


def load_gguf(
    folder: Path,
    gguf_file: str,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    *,
    on_tensor: Callable[[], None] | None = None,
) -> PreTrainedModel:
    """Dequantise `folder/gguf_file` into a model on the CPU; about 30 s for 135 million parameters.

    The model is rebuilt from its configuration, because a model that transformers makes from a GGUF file counts as
    quantised and can be neither saved nor trained. While it is copied there are two models in memory. `on_tensor` is
    called after each tensor.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with loading(f"{folder / gguf_file} cannot be read as a GGUF model"):
        with no_progress_bars(), no_loading_report(), _watched_reader(on_tensor):
            read, report = AutoModelForCausalLM.from_pretrained(
                str(folder),
                gguf_file=gguf_file,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"{folder / gguf_file} lacks {len(missing)} tensors (such as {missing[0]}): copy it again")
        settings = read.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(key, None)
        options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
        model = AutoModelForCausalLM.from_config(type(read.config).from_dict(settings), dtype=dtype, **options)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.generation_config = read.generation_config
    plain: PreTrainedModel = model
    return plain


def tensor_count(file: Path) -> int:
    """The number of tensors in a GGUF file's header; 0 if the header cannot be read, which loading will report."""
    with file.open("rb") as stream:
        header = stream.read(HEADER.size)
    return int(HEADER.unpack(header)[2]) if len(header) == HEADER.size else 0


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder` in the format of transformers.

    The weights are float32, which is exact: GGUF's blocks are a scale and small integers, and bfloat16 would
    round them once more.
    """
    import torch
    from transformers import AutoTokenizer

    model = load_gguf(file.parent, file.name, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    with no_progress_bars():
        model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


@contextmanager
def _watched_reader(on_tensor: Callable[[], None] | None) -> Iterator[None]:
    """Call `on_tensor` in place of a progress bar that transformers' switch for progress bars does not turn off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    def watched(tensors: Any, **_: Any) -> Iterator[Any]:
        for tensor in tensors:
            yield tensor
            if on_tensor is not None:
                on_tensor()

    bar = reader.tqdm
    reader.tqdm = watched
    try:
        yield
    finally:
        reader.tqdm = bar
