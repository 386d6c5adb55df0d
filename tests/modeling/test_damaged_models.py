"""Damaged model folders: whatever is done to them, loading and asking ends with an answer or with one line."""

from __future__ import annotations

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.test_damaged_files import at_most_one_line, damage
from tests.support.generation import generate
from tests.support.hypotheses import QUICK

from lorahydra.config.schema import ModelConfig
from lorahydra.data import ChatFormat, Example, Message
from lorahydra.modeling.base import load_base
from lorahydra.modeling.generation import stop_tokens
from lorahydra.modeling.lora import load_adapter
from lorahydra.modeling.metadata import read_metadata

NUMBERS = count()
FEW = settings(QUICK, max_examples=10)
ODD = st.sampled_from([None, True, "abc", "", -1, 0, 10**12, 1.5, [], {}, ["x"], {"a": 1}, [1, 2]])
EXAMPLE = Example((Message("user", "Hi é"), Message("assistant", "Yo")), 1)


@st.composite
def other_value(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON with one value, wherever it is, replaced or left out."""
    value = node = json.loads(content)
    while isinstance(node, dict | list) and node:
        key: Any = draw(st.sampled_from(list(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
            node = node[key]
        elif draw(st.integers(0, 3)):
            node[key] = draw(ODD)
            break
        else:
            del node[key]
            break
    return json.dumps(value).encode()


def spoil(data: st.DataObject, folder: Path, name: str, target: Path) -> Path:
    """A copy of the folder, with a name of its own as models are kept by name, in which one file is damaged."""
    copy = Path(shutil.copytree(folder, target / f"copy-{next(NUMBERS)}"))
    content = (copy / name).read_bytes()
    ways = [damage(content)] + [other_value(content)] * 2 * name.endswith(".json")
    (copy / name).write_bytes(data.draw(st.one_of(ways)))
    return copy


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
    ],
)
@FEW
@given(data=st.data())
def test_a_damaged_model_answers_or_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    folder = spoil(data, tiny_model, name, tmp_path)
    base = None
    with at_most_one_line(str(folder)):
        base = load_base(ModelConfig(name_or_path=str(folder), device="cpu"))
    if base is None:
        return
    with at_most_one_line():
        chat = ChatFormat(base.tokenizer)
        chat.encode_batch([EXAMPLE])
        stop = stop_tokens(base.model, chat.end_tokens)
        generate(base.model, [chat.prompt_ids(EXAMPLE)], stop=stop, max_new_tokens=2, batch_size=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "lorahydra.json"])
@FEW
@given(data=st.data())
def test_a_damaged_adapter_is_attached_or_refused_in_one_line(
    tiny_model: Path, tiny_adapter: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    folder = spoil(data, tiny_adapter, name, tmp_path)
    base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))
    with at_most_one_line(str(folder)):
        read_metadata(folder)
        with load_adapter(base, folder):
            pass
