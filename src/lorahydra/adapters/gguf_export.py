"""Writes an adapter for llama.cpp: as a GGUF adapter, or merged into its base model.

```python
export_gguf(adapter.folder, Path("my-gguf"))                                  # adapter.gguf
export_gguf(adapter.folder, Path("my-model"), merged=True, dtype="q8_0")      # model.gguf
```
"""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.adapters.export_folder import ExportFolder, export_folder
from lorahydra.adapters.lora_layers import LoraLayer, read_layers
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.examples import Example, Message
from lorahydra.errors import ConfigError
from lorahydra.inference.adapted_model import chat_format, warn_of_another_base
from lorahydra.modeling.base import BaseModel, load_copy, load_tokenizer
from lorahydra.modeling.generation import stop_tokens
from lorahydra.modeling.gguf_architectures import gguf_architecture
from lorahydra.modeling.gguf_tokenizer import add_tokenizer, check_splitting
from lorahydra.modeling.gguf_writing import GGUF_DTYPES, write_adapter_gguf, write_model_gguf
from lorahydra.modeling.merging import merge_adapter, without_thinking
from lorahydra.modeling.metadata import AdapterMetadata
from lorahydra.modeling.model_files import locate
from lorahydra.modeling.pretrained import read_config
from lorahydra.modeling.quantization import dequantize
from lorahydra.tracking import RecordedRun

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTER_FILE", "BASE_FILE", "MODEL_FILE", "adds_bos", "export_gguf", "write_gguf"]

logger = logging.getLogger(__name__)

ADAPTER_FILE, BASE_FILE, MODEL_FILE = "adapter.gguf", "base.gguf", "model.gguf"
TEMPLATE_FILE = "chat_template.jinja"


def export_gguf(
    folder: Path,
    target: Path,
    *,
    merged: bool = False,
    with_base: bool = False,
    dtype: str = "auto",
    base: str | None = None,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
) -> None:
    """Write an adapter to `target` for llama.cpp, as a whole or not at all.

    Args:
        folder: The adapter, in PEFT's format.
        target: A new or empty folder.
        merged: As one model, merged into a copy of its base; otherwise the adapter alone.
        with_base: Write the base model beside the adapter.
        dtype: Dtype of the matrices, one of `GGUF_DTYPES`. `auto` is float16 for a whole model, and float32 for an
            adapter.
        base: The place of the base model, if it is not where it was in training.
        run: The trial's run, for the model card.
        study: The run of the study that it won, for the model card.

    Raises:
        ConfigError: An adapter cannot have this dtype.
        ModelError: The adapter or its base model cannot be used, or llama.cpp has no place for them.
        ServiceError: The base model is on the hub, which cannot be reached.
        OutputError: `target` is not empty, or cannot be written.
    """
    whole = merged or with_base
    with export_folder(folder, target, reads_weights=whole, base=base, run=run, study=study) as export:
        written, _ = write_gguf(export, merged=merged, with_base=with_base, dtype=dtype)
        template = export.loaded.model.chat_template
        if not whole and template is not None:
            (export.folder / TEMPLATE_FILE).write_text(without_thinking(template), "utf-8")
        export.write_card(dtype=written, merged=merged, use=_use(export, merged, with_base), library="gguf")


def write_gguf(
    export: ExportFolder, *, merged: bool, with_base: bool, dtype: str
) -> tuple[str, tuple[ChatFormat, frozenset[int]] | None]:
    """Write the GGUF files of an export.

    Args:
        export: The folder.
        merged: Write `model.gguf`; otherwise `adapter.gguf`.
        with_base: Write `base.gguf` too.
        dtype: As for `export_gguf`.

    Returns:
        llama.cpp's name of the dtype. If a whole model was written, its chat format and the ids that end its answers.
    """
    whole = merged or with_base
    if dtype == "auto":
        dtype = "float16" if whole else "float32"
    if dtype == "q8_0" and not whole:
        raise ConfigError("--dtype=q8_0 is for whole models: add --merged, or choose float32, float16 or bfloat16")
    model = export.loaded.model
    # Before weights are read, which takes long.
    config = read_config(locate(model, weights=False))
    gguf_architecture(config.get_text_config(decoder=True))
    if whole:
        check_splitting(load_tokenizer(model))
    layers = [] if merged else read_layers(export.adapter, "llama.cpp")
    if layers:
        alpha, pairs = _common_alpha(layers)
        adapter_dtype = "float32" if with_base else dtype
        write_adapter_gguf(export.folder / ADAPTER_FILE, config, pairs, alpha, adapter_dtype)
        if model.quantization is not None and not with_base:
            logger.warning(
                "The base model was quantised to %s in training: on another GGUF file of the base model answers may "
                "be worse; --with-base writes the weights of the training",
                model.quantization,
            )
    written = None
    if whole:
        import torch

        if merged:
            loaded = merge_adapter(model, export.adapter, torch.float32)
        else:
            loaded = load_copy(model)
            dequantize(loaded.model, torch.float32)
        warn_of_another_base(loaded, export.loaded)
        file = MODEL_FILE if merged else BASE_FILE
        written = _write_model(loaded, export.folder / file, dtype, export.title, export.loaded)
    return GGUF_DTYPES[dtype], written


def adds_bos(chat: ChatFormat, tokenizer: Any) -> bool:
    """Whether llama.cpp is to put a beginning-of-sequence token before every prompt.

    Only if the tokenizer does so and the chat template has it too: llama.cpp then leaves out one of the two.
    """
    bos = tokenizer.bos_token_id
    begins = tokenizer("x", add_special_tokens=True)["input_ids"][:1] == [bos]
    prompt = chat.prompt_ids(Example((Message("user", "x"), Message("assistant", "")), line=0))
    return bos is not None and begins and prompt[:1] == [bos]


def _write_model(
    base: BaseModel, file: Path, dtype: str, name: str, metadata: AdapterMetadata
) -> tuple[ChatFormat, frozenset[int]]:
    chat = chat_format(base, metadata)
    stop = stop_tokens(base.model, chat.end_tokens)
    # llama.cpp has a place for two more than the end-of-sequence token: the template's own come first.
    ordered = [*sorted(chat.end_tokens), *sorted(stop - chat.end_tokens)]
    size = base.model.get_input_embeddings().weight.shape[0]
    write_model_gguf(
        file,
        base.model,
        dtype,
        name,
        lambda writer: add_tokenizer(
            writer,
            base.tokenizer,
            int(size),
            chat_template=without_thinking(chat.template),
            stop=ordered,
            adds_bos=adds_bos(chat, base.tokenizer),
        ),
    )
    return chat, stop


def _common_alpha(layers: list[LoraLayer]) -> tuple[float, list[tuple[str, torch.Tensor, torch.Tensor]]]:
    """One alpha for all layers, as llama.cpp has it; where theirs differ, they go into `b`.

    llama.cpp adds `alpha / rank · b @ a`, and takes an alpha of 0 for "no scale".
    """
    alphas = {layer.scale * layer.rank for layer in layers}
    if len(alphas) == 1 and (alpha := alphas.pop()) > 0:
        return alpha, [(layer.module, layer.a, layer.b) for layer in layers]
    return 1.0, [(layer.module, layer.a, layer.b.float() * (layer.scale * layer.rank)) for layer in layers]


def _use(export: ExportFolder, merged: bool, with_base: bool) -> str:
    """How to run it, for the model card."""
    command = ["llama-server", "--model", MODEL_FILE if merged else BASE_FILE]
    if not merged:
        command += ["--lora", ADAPTER_FILE]
    if (export.folder / TEMPLATE_FILE).is_file():
        command += ["--chat-template-file", TEMPLATE_FILE]
    command += ["--jinja", "--temp", "0", "--predict", str(export.metadata.max_new_tokens)]
    lines = ["With llama.cpp, in this folder:", "", "```sh", shlex.join(command), "```"]
    if not merged and not with_base:
        lines += ["", f"`{BASE_FILE}` is a GGUF file of the base model named above."]
    return "\n".join(lines)
