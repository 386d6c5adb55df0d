"""The files of an adapter for others, without those of MLflow: what PEFT loads, and a card. Imports no torch."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

from lorahydra.adapters.find import FoundAdapter
from lorahydra.adapters.model_card import model_card
from lorahydra.modeling.metadata import metadata_text, read_metadata
from lorahydra.modeling.packaged import public_name
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, CARD_FILE, GENERATION_FILE, METADATA_FILE

__all__ = ["adapter_settings", "bundle"]

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of safetensors."""


def bundle(adapter: FoundAdapter, title: str, *, base: str | None = None) -> dict[str, bytes | Path]:
    """The content of each file, by name; what is large stays where it is.

    Args:
        adapter: The adapter, with the runs for its card.
        title: Heading of the card.
        base: Hub id of the base model, if it was trained on a copy that others do not have.

    Raises:
        ModelError: It is not an adapter, or its files are damaged.
    """
    folder = adapter.folder
    metadata = read_metadata(folder)
    if base is not None:
        model = dataclasses.replace(metadata.model, name_or_path=base, gguf_file=None)
        metadata = dataclasses.replace(metadata, model=model)
    settings = adapter_settings(folder, base)
    files: dict[str, bytes | Path] = {
        ADAPTER_CONFIG_FILE: settings.encode(),
        ADAPTER_WEIGHTS_FILE: folder / ADAPTER_WEIGHTS_FILE,
    }
    if (folder / METADATA_FILE).is_file():
        files[METADATA_FILE] = metadata_text(metadata).encode()
    if has_settings := (folder / GENERATION_FILE).is_file():
        files[GENERATION_FILE] = folder / GENERATION_FILE
    card = model_card(
        title,
        metadata,
        lora=json.loads(settings),
        dtype=_dtype(folder / ADAPTER_WEIGHTS_FILE),
        merged=False,
        run=adapter.run,
        study=adapter.study,
        has_settings=has_settings,
    )
    files[CARD_FILE] = card.encode("utf-8", "replace")
    return files


def adapter_settings(folder: Path, base: str | None = None) -> str:
    """PEFT's configuration, with the name of the base model that other programs know, or with `base`."""
    settings = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8"))
    if base is not None:
        settings |= {"base_model_name_or_path": base, "revision": None}
    # Adapters of earlier versions name packaged models as only lorahydra does.
    if isinstance(named := settings.get("base_model_name_or_path"), str):
        settings["base_model_name_or_path"] = public_name(named)
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _dtype(weights: Path) -> str:
    """The most frequent dtype of the tensors in a file."""
    from safetensors import safe_open

    with safe_open(weights, "numpy") as tensors:
        counts = Counter(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118
    [(dtype, _)] = counts.most_common(1) or [("no weights", 0)]
    return DTYPES.get(str(dtype), str(dtype))
