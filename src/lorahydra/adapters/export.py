"""Writes an adapter to a folder for others: as PEFT loads it, or merged into its base model, with a model card.

```python
with find_adapter("demo", record=True) as adapter:
    export_adapter(adapter.folder, Path("my-adapter"), run=adapter.run, study=adapter.study)
    export_adapter(adapter.folder, Path("my-model"), merged=True, dtype="bfloat16")
```
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from lorahydra.adapters.bundle import adapter_settings
from lorahydra.adapters.export_folder import export_folder
from lorahydra.errors import ModelError
from lorahydra.inference.adapted_model import chat_format, warn_of_another_base
from lorahydra.modeling.devices import dtype_name, resolve_device, resolve_dtype
from lorahydra.modeling.huggingface import disk_errors
from lorahydra.modeling.merging import merge_adapter, save_merged
from lorahydra.modeling.metadata import AdapterMetadata, write_metadata
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, GENERATION_FILE, METADATA_FILE
from lorahydra.tracking import RecordedRun

if TYPE_CHECKING:
    import torch

__all__ = ["export_adapter", "write_merged", "write_peft"]

logger = logging.getLogger(__name__)


def export_adapter(
    folder: Path,
    target: Path,
    *,
    merged: bool = False,
    dtype: str = "auto",
    base: str | None = None,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
) -> None:
    """Write an adapter to `target`, as a whole or not at all.

    Args:
        folder: The adapter, in PEFT's format.
        target: A new or empty folder.
        merged: As one model, merged into a copy of its base; otherwise the adapter alone.
        dtype: Dtype of the weights. For a merged model `auto` is the one in which the adapter was scored; for an
            adapter it is the adapter's own.
        base: The place of the base model, if it is not where it was in training; written to an exported adapter.
        run: The trial's run, for the model card.
        study: The run of the study that it won, for the model card.

    Raises:
        ModelError: The adapter or its base model cannot be used.
        ServiceError: The base model is on the hub, which cannot be reached.
        OutputError: `target` is not empty, or cannot be written.
    """
    with export_folder(folder, target, reads_weights=merged, base=base, run=run, study=study) as export:
        if merged:
            written, texts = write_merged(folder, export.folder, export.loaded, dtype)
        else:
            written, texts = write_peft(folder, export.folder, export.metadata, dtype, moved=base is not None), ()
        export.write_card(dtype=written, merged=merged, end_texts=texts)


def write_merged(folder: Path, target: Path, metadata: AdapterMetadata, dtype: str) -> tuple[str, tuple[str, ...]]:
    """Write a merged model; returns the dtype of its weights, and the texts that end its answers."""
    merged_dtype = _merged_dtype(metadata, dtype)
    if metadata.model.quantization is not None:
        logger.warning(
            "The base model was quantised to %s in training: the merged model has its dequantised weights in %s, which "
            "take as much memory as those of any other model",
            metadata.model.quantization,
            dtype_name(merged_dtype),
        )
    base = merge_adapter(metadata.model, folder, merged_dtype)
    warn_of_another_base(base, metadata)
    chat = chat_format(base, metadata)
    save_merged(base, target, chat_template=chat.template, ends=chat.end_tokens)
    return dtype_name(merged_dtype), chat.end_texts


def _merged_dtype(metadata: AdapterMetadata, dtype: str) -> torch.dtype:
    import torch

    if dtype == "auto":
        dtype = metadata.model.dtype
    if dtype == "auto":  # not an adapter of ours: as it would be loaded here
        return resolve_dtype("auto", resolve_device("auto"))
    named: torch.dtype = getattr(torch, dtype)
    return named


def write_peft(folder: Path, target: Path, metadata: AdapterMetadata, dtype: str, *, moved: bool) -> str:
    """Write an adapter as PEFT loads it, with its metadata; returns the dtype of its weights.

    Args:
        folder: The adapter.
        target: A folder that exists.
        metadata: Its metadata, for others.
        dtype: Dtype of the weights; `auto` keeps them.
        moved: Whether `metadata` names another place of the base model than the adapter does.
    """
    settings = adapter_settings(folder, metadata.model.name_or_path if moved else None)
    (target / ADAPTER_CONFIG_FILE).write_text(settings, "utf-8")
    if (folder / METADATA_FILE).is_file():
        write_metadata(target, metadata)
    if (folder / GENERATION_FILE).is_file():
        shutil.copyfile(folder / GENERATION_FILE, target / GENERATION_FILE)
    return _write_weights(folder / ADAPTER_WEIGHTS_FILE, target / ADAPTER_WEIGHTS_FILE, dtype)


def _write_weights(source: Path, target: Path, dtype: str) -> str:
    """Copy an adapter's weights, cast to `dtype` unless it is `auto`, and return the name of their dtype."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    if dtype == "auto":
        shutil.copyfile(source, target)
    else:
        target_dtype = getattr(torch, dtype)
        tensors = {name: value.to(target_dtype).contiguous() for name, value in tensors.items()}
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise ModelError(f"the adapter's weights are too large for {dtype}: choose another dtype")
        with disk_errors():
            save_file(tensors, target, metadata={"format": "pt"})
    counts = Counter(dtype_name(value.dtype) for value in tensors.values())
    return counts.most_common(1)[0][0] if counts else "no weights"
