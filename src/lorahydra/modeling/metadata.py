"""The metadata of an adapter: `lorahydra.json` beside its weights, so that a copied folder gives the same answers.

PEFT's files name only the base model. The chat template, system message, precision and length of answers affect the
adapter's answers just as much.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.checks import at_least, check_types
from lorahydra.config.data import SpecialTokens
from lorahydra.config.schema import EvaluationConfig, ModelConfig
from lorahydra.errors import ConfigError, ModelError
from lorahydra.modeling.peft_format import check_adapter
from lorahydra.names import ADAPTER_CONFIG_FILE, METADATA_FILE
from lorahydra.utils.files import atomic_file

__all__ = ["AdapterMetadata", "metadata_text", "read_metadata", "write_metadata"]

VERSION = 1
KEPT = ("name_or_path", "revision", "gguf_file", "dtype", "quantization", "attn_implementation", "chat_template")
"""Settings of the base model that are kept; the device depends on the machine."""


@dataclass(frozen=True)
class AdapterMetadata:
    """How an adapter was trained and scored, and so how prompts should be given to it."""

    model: ModelConfig
    """The base model, with the chat template as text and the precision in which the adapter was scored."""
    base_digest: str | None = None
    """Digest of the base model's content; None if it is not known."""
    system_prompt: str | None = None
    """Put before conversations that have no system message."""
    max_new_tokens: int = EvaluationConfig.max_new_tokens
    """Longest answer in tokens."""
    run_id: str | None = None
    """The MLflow run of the trial."""
    special_tokens: SpecialTokens = "text"
    """How names of control tokens in prompts are treated, as in `data.special_tokens`."""


def write_metadata(folder: Path, metadata: AdapterMetadata) -> None:
    """Write the metadata into the adapter's folder."""
    with atomic_file(folder / METADATA_FILE) as temporary:
        temporary.write_text(metadata_text(metadata), "utf-8")


def metadata_text(metadata: AdapterMetadata) -> str:
    """The content of the file."""
    values = dataclasses.asdict(metadata)
    content = {"version": VERSION, **values, "model": {name: values["model"][name] for name in KEPT}}
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def read_metadata(folder: Path) -> AdapterMetadata:
    """Read the metadata; for an adapter that lorahydra did not train, what PEFT's configuration says."""
    check_adapter(folder)
    path = folder / METADATA_FILE
    if not path.is_file():
        return AdapterMetadata(ModelConfig(name_or_path=_base_of(folder)))
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("version") != VERSION:
            raise ModelError(f"{path} was written by another version of lorahydra")
        return _checked(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise ModelError(f"{path} cannot be read ({type(error).__name__}: {error}): remove it, or copy it again") from (
            error
        )


def _base_of(folder: Path) -> str:
    """The base model that PEFT's configuration names."""
    name = json.loads((folder / ADAPTER_CONFIG_FILE).read_text("utf-8")).get("base_model_name_or_path")
    if not isinstance(name, str) or not name.strip():
        raise ModelError(f"{folder / ADAPTER_CONFIG_FILE} does not name a base model: give one")
    return name


def _checked(content: Mapping[str, Any]) -> AdapterMetadata:
    # Earlier versions had no quantised base models.
    settings = {"quantization": None, **content["model"]}
    model = ModelConfig(**{name: settings[name] for name in KEPT})
    metadata = AdapterMetadata(**{**content, "model": model})
    check_types("", metadata)
    at_least("max_new_tokens", metadata.max_new_tokens, 1)
    for text in (*vars(model).values(), metadata.base_digest, metadata.system_prompt, metadata.run_id):
        (text or "").encode()  # half of a surrogate pair, which JSON can hold, is not text
    if model.chat_template is not None and "{" not in model.chat_template:
        # A path would name a file of this machine, even if another machine wrote it.
        raise ValueError("the chat template is not Jinja text")
    return metadata
