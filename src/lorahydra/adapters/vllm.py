"""Writes an adapter for vLLM: checks that vLLM serves it, and writes the command and the chat template.

```python
export_vllm(adapter.folder, Path("my-vllm"))
```
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorahydra.adapters.export import write_merged, write_peft
from lorahydra.adapters.export_folder import ExportFolder, export_folder
from lorahydra.adapters.lora_layers import LoraLayer, read_layers
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.errors import ModelError
from lorahydra.modeling.base import load_tokenizer
from lorahydra.modeling.merging import without_thinking
from lorahydra.modeling.model_files import locate
from lorahydra.modeling.packaged import public_name
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from lorahydra.tracking import RecordedRun

__all__ = ["check_served", "export_vllm"]

logger = logging.getLogger(__name__)

RANKS = (8, 16, 32, 64, 128, 256)
"""Values of vLLM's `--max-lora-rank`; newer releases take 320 and 512 as well."""
OUTSIDE = ("embed_tokens", "lm_head")
"""Layers that only some releases of vLLM adapt."""
TEMPLATE_FILE, COMMAND_FILE = "chat_template.jinja", "serve.sh"
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0}


def export_vllm(
    folder: Path,
    target: Path,
    *,
    merged: bool = False,
    dtype: str = "auto",
    base: str | None = None,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
) -> None:
    """Write an adapter to `target` for `vllm serve`, as a whole or not at all.

    Args:
        folder: The adapter, in PEFT's format.
        target: A new or empty folder.
        merged: As one model, merged into a copy of its base; otherwise the adapter alone.
        dtype: Dtype of the written weights, as in `export_adapter`.
        base: The place of the base model, if it is not where it was in training.
        run: The trial's run, for the model card.
        study: The run of the study that it won, for the model card.

    Raises:
        ModelError: The adapter or its base model cannot be used, or vLLM does not serve it.
        ServiceError: The base model is on the hub, which cannot be reached.
        OutputError: `target` is not empty, or cannot be written.
    """
    with export_folder(folder, target, reads_weights=merged, base=base, run=run, study=study) as export:
        model = export.loaded.model
        layers = [] if merged else check_served(export)
        tokenizer = load_tokenizer(model)
        chat = ChatFormat(tokenizer, chat_template=model.chat_template)
        if merged:
            written, _ = write_merged(folder, export.folder, export.loaded, dtype)
        else:
            written = write_peft(folder, export.folder, export.metadata, dtype, moved=base is not None)
            _make_uniform(export.folder, layers)
        (export.folder / TEMPLATE_FILE).write_text(without_thinking(chat.template), "utf-8")
        command = shlex.join(_command(export, layers)) + "\n"
        script = f'#!/bin/sh\ncd "$(dirname "$0")" || exit 1\nexec {command}'
        (export.folder / COMMAND_FILE).write_text(script, "utf-8")
        use = f"With vLLM, in this folder (or `sh {COMMAND_FILE}`):\n\n```sh\n{command}```\n\n"
        use += f"The name of the model in a request is `{export.name}`."
        use += "".join(f' Send `"{name}": {json.dumps(values)}` with it.' for name, values in _stops(chat, tokenizer))
        export.write_card(dtype=written, merged=merged, use=use, end_texts=chat.end_texts)


def check_served(export: ExportFolder) -> list[LoraLayer]:
    """Check that vLLM serves an adapter beside its base model, and return its layers.

    Raises:
        ModelError: It does not.
    """
    layers = read_layers(export.adapter, "vLLM")
    if (rank := max(layer.rank for layer in layers)) > RANKS[-1]:
        raise ModelError(
            f"the adapter has rank {rank}, and older releases of vLLM serve no more than {RANKS[-1]}: add --merged"
        )
    outside = sorted({name for layer in layers for name in OUTSIDE if layer.module.endswith(name)})
    if outside:
        raise ModelError(
            f"the adapter changes {', '.join(outside)}, which not all releases of vLLM adapt: add --merged"
        )
    model = export.loaded.model
    if locate(model, weights=False).gguf_file:
        raise ModelError("vLLM does not serve adapters beside a GGUF file: add --merged, or name another --base")
    if model.quantization == "int8":
        raise ModelError("the base model was quantised to int8 in training, which vLLM does not do: add --merged")
    return layers


def _stops(chat: ChatFormat, tokenizer: Any) -> Iterator[tuple[str, list[Any]]]:
    """What ends an answer beside the end-of-sequence token, as fields of a request."""
    if others := sorted(chat.end_tokens - {tokenizer.eos_token_id}):
        yield "stop_token_ids", others
    if chat.end_texts:
        yield "stop", list(chat.end_texts)


def _make_uniform(folder: Path, layers: Sequence[LoraLayer]) -> None:
    """Rewrite an adapter whose layers differ in rank or scale: vLLM takes one of each for all of them.

    Missing ranks are filled with zeros, and scales go into the factor `b`.
    """
    file = folder / ADAPTER_CONFIG_FILE
    settings = json.loads(file.read_text("utf-8"))
    if not settings.get("rank_pattern") and not settings.get("alpha_pattern"):
        return
    from safetensors.torch import save_file
    from torch.nn.functional import pad

    rank = max(layer.rank for layer in layers)
    tensors = {}
    for layer in layers:
        name, missing = f"base_model.model.{layer.module}", rank - layer.rank
        tensors[f"{name}.lora_A.weight"] = pad(layer.a, (0, 0, 0, missing)).contiguous()
        scaled = (layer.b.float() * layer.scale).to(layer.b.dtype)
        tensors[f"{name}.lora_B.weight"] = pad(scaled, (0, missing)).contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    settings |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _command(export: ExportFolder, layers: Sequence[LoraLayer]) -> list[str]:
    model = export.metadata.model
    command = ["vllm", "serve", public_name(model.name_or_path) if layers else "."]
    if layers:
        largest = max(layer.rank for layer in layers)
        command += ["--enable-lora", "--max-lora-rank", str(next(rank for rank in RANKS if rank >= largest))]
        command += ["--lora-modules", f"{export.name}=."]
        command += ["--revision", model.revision] if model.revision else []
        command += ["--quantization", "bitsandbytes"] if model.quantization == "nf4" else []
        command += ["--dtype", model.dtype]
    else:
        command += ["--served-model-name", export.name]
    command += ["--chat-template", TEMPLATE_FILE]
    return [*command, "--override-generation-config", json.dumps(GREEDY)]
