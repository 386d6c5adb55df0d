"""What every kind of export does: checks before anything is written, a folder that is written whole, and a card."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.adapters.model_card import model_card
from lorahydra.errors import OutputError
from lorahydra.inference.adapted_model import model_at, place_of_base
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata
from lorahydra.modeling.model_files import check_weights, locate
from lorahydra.modeling.peft_format import check_adapter
from lorahydra.names import ADAPTER_CONFIG_FILE, CARD_FILE, GENERATION_FILE
from lorahydra.tracking import RecordedRun
from lorahydra.utils.files import atomic_dir, check_new

__all__ = ["ExportFolder", "export_folder"]


@dataclass(frozen=True)
class ExportFolder:
    """A folder that is being written."""

    adapter: Path
    """The adapter, in PEFT's format."""
    folder: Path
    """Where the files go until all of them are there."""
    title: str
    """The name of the finished folder."""
    metadata: AdapterMetadata
    """The adapter's metadata, as others may see it."""
    loaded: AdapterMetadata
    """The same, with the place from which the base model is loaded now."""
    run: RecordedRun | None = None
    study: RecordedRun | None = None

    @property
    def name(self) -> str:
        """The title as programs take it for a model's name: letters and digits of ASCII, `.`, `_` and `-`."""
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.title).strip("-._") or "adapter"

    def write_card(self, **facts: Any) -> None:
        """Write the model card; the arguments are those of `model_card` that depend on the kind of export."""
        card = model_card(
            self.title,
            self.metadata,
            lora=json.loads((self.adapter / ADAPTER_CONFIG_FILE).read_text("utf-8")),
            run=self.run,
            study=self.study,
            has_settings=(self.folder / GENERATION_FILE).is_file(),
            **facts,
        )
        (self.folder / CARD_FILE).write_text(card, "utf-8", errors="replace")


@contextmanager
def export_folder(
    adapter: Path,
    target: Path,
    *,
    reads_weights: bool,
    base: str | None = None,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
) -> Iterator[ExportFolder]:
    """Make `target` if the block ends well, and nothing otherwise.

    Args:
        adapter: The adapter, in PEFT's format.
        target: A new or empty folder.
        reads_weights: Whether the base model's weights are needed; then they are looked at first.
        base: The place of the base model, if it is not where it was in training.
        run: The trial's run, for the model card.
        study: The run of the study that it won, for the model card.

    Raises:
        ModelError: The adapter or its base model cannot be used.
        ServiceError: The base model is on the hub, which cannot be reached.
        OutputError: `target` is not empty, or cannot be written.
    """
    check_new(target)
    target = target.resolve()
    check_adapter(adapter)
    metadata = read_metadata(adapter)
    loaded = metadata
    if (place := place_of_base(adapter, base)) is not None:
        loaded = dataclasses.replace(metadata, model=model_at(metadata.model, place))
    if base is not None:
        metadata = loaded  # but not for the copy in the adapter's folder, which nobody else has
    if reads_weights:
        # Before anything is written or loaded.
        check_weights(locate(loaded.model))
    with atomic_dir(target) as temporary:
        made = temporary.stat()
        yield ExportFolder(adapter, temporary, target.name, metadata, loaded, run, study)
    if not os.path.samestat(made, target.stat()):  # another process was faster
        raise OutputError(f"another program has created {target} in the meantime: choose another folder")
