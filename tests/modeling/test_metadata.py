"""`lorahydra.json`: kept whole, and read with the distrust that a downloaded file deserves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata, write_metadata
from lorahydra.names import METADATA_FILE

TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture
def folder(tiny_adapter: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_adapter, tmp_path / "adapter")


def changed(folder: Path, **values: Any) -> None:
    """Change top-level values; a key `model__x` is one of the model's."""
    content = json.loads((folder / METADATA_FILE).read_text("utf-8"))
    for name, value in values.items():
        outer, _, inner = name.partition("__")
        if inner:
            content[outer][inner] = value
        else:
            content[outer] = value
    (folder / METADATA_FILE).write_text(json.dumps(content), "utf-8")


def test_it_comes_back_as_it_was_written(folder: Path) -> None:
    origin = AdapterMetadata(
        ModelConfig(name_or_path="имя", revision="main", dtype="bfloat16", quantization="nf4", chat_template=TEMPLATE),
        base_digest="git:abc",
        system_prompt='"Кратко"\n---\n',
        max_new_tokens=7,
        run_id="0" * 32,
        special_tokens="control",
    )
    write_metadata(folder, origin)
    assert read_metadata(folder) == origin


def test_adapters_of_before_are_asked_as_they_were_trained(folder: Path) -> None:
    content = json.loads((folder / METADATA_FILE).read_text("utf-8"))
    content.pop("special_tokens")
    content["model"].pop("quantization")
    (folder / METADATA_FILE).write_text(json.dumps(content), "utf-8")
    metadata = read_metadata(folder)
    assert (metadata.special_tokens, metadata.model.quantization) == ("text", None)


def test_the_device_of_another_machine_is_not_kept(folder: Path) -> None:
    write_metadata(folder, AdapterMetadata(ModelConfig(name_or_path="x", device="cuda:3")))
    assert read_metadata(folder).model.device == "auto"


def test_an_adapter_of_others_names_its_base_in_its_own_file(folder: Path, tiny_model: Path) -> None:
    (folder / METADATA_FILE).unlink()
    assert read_metadata(folder) == AdapterMetadata(ModelConfig(name_or_path=str(tiny_model)))


@pytest.mark.parametrize("name", [None, 3, "", " "])
def test_an_adapter_of_others_that_names_none(folder: Path, name: object) -> None:
    (folder / METADATA_FILE).unlink()
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
    with pytest.raises(ModelError, match="does not name a base model"):
        read_metadata(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"version": 2},
        {"model": None},
        {"model": []},
        {"model__name_or_path": None},
        {"model__name_or_path": ["x"]},
        {"model__name_or_path": ""},
        {"model__dtype": "int8"},
        {"model__dtype": None},
        {"model__quantization": "nf5"},
        {"model__chat_template": "/etc/passwd"},
        {"model__chat_template": {"a": 1}},
        {"model__revision": 3},
        {"system_prompt": ["x"]},
        {"system_prompt": "\ud800"},
        {"run_id": 5},
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"max_new_tokens": "12"},
        {"max_new_tokens": True},
        {"max_new_tokens": 1.5},
        {"special_tokens": "both"},
        {"special_tokens": ["text"]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(folder: Path, values: dict[str, Any]) -> None:
    changed(folder, **values)
    with pytest.raises(ModelError, match=METADATA_FILE) as error:
        read_metadata(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{", "{}", '{"version": 1}', "[" * 100_000, "\ufeff{}"], ids=lambda text: text[:5]
)
def test_what_is_no_such_file_is_one_line(folder: Path, content: str) -> None:
    (folder / METADATA_FILE).write_text(content, "utf-8")
    with pytest.raises(ModelError, match=METADATA_FILE):
        read_metadata(folder)


def test_a_missing_key_is_one_line(folder: Path) -> None:
    content = json.loads((folder / METADATA_FILE).read_text("utf-8"))
    del content["model"]["dtype"]
    (folder / METADATA_FILE).write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelError, match="'dtype'"):
        read_metadata(folder)


def test_bytes_that_are_no_text_are_one_line(folder: Path) -> None:
    (folder / METADATA_FILE).write_bytes(b'{"version": "\xff"}')
    with pytest.raises(ModelError, match="cannot be read"):
        read_metadata(folder)
