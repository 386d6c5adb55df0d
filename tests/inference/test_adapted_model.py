"""Answers of an adapter and of its base model, one interface for all who ask."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.generation import generate
from tests.support.models import CHAT_TEMPLATE, make_tiny_model, weights_digest

from lorahydra.adapters.export import export_adapter
from lorahydra.config.schema import ModelConfig
from lorahydra.data.examples import Message
from lorahydra.errors import ConfigError, ModelError
from lorahydra.inference import adapted_model
from lorahydra.inference.adapted_model import chat_format, conversations, open_adapter
from lorahydra.modeling.base import load_base
from lorahydra.modeling.generation import stop_tokens
from lorahydra.modeling.metadata import read_metadata, write_metadata
from lorahydra.names import BASE_DIR, METADATA_FILE

ASKED = conversations(["What is one and one?", "Name a colour, please.", "x"])


def test_adapter_and_base_answer_differently_and_leave_no_trace(tiny_adapter: Path, tiny_model: Path) -> None:
    base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))
    before = weights_digest(base.model)
    with open_adapter(tiny_adapter, device="cpu") as model:
        tuned, untuned = model.answer_tokens(ASKED), model.answer_tokens(ASKED, tuned=False)
        assert model.base is base
        assert model.answer_tokens(ASKED) == tuned, "asking the base model does not change the adapter"
        stop = stop_tokens(base.model, chat_format(base, model.metadata).end_tokens)
        prompts = [model.prompt_ids(conversation) for conversation in ASKED]
    assert tuned != untuned
    assert weights_digest(base.model) == before
    assert generate(base.model, prompts, stop=stop, max_new_tokens=12, batch_size=1) == untuned


def test_answers_keep_the_order_of_the_prompts(tiny_adapter: Path) -> None:
    with open_adapter(tiny_adapter, device="cpu") as model:
        together = model.answer_tokens(ASKED)
        assert [model.answer_tokens([asked])[0] for asked in ASKED] == together
        assert model.answer_tokens([]) == []
        assert model.answer(ASKED) == [
            model.base.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in together
        ]


def test_an_answer_is_followed_while_it_grows(tiny_adapter: Path) -> None:
    with open_adapter(tiny_adapter, device="cpu") as model:
        [asked], [whole] = ASKED[:1], model.answer(ASKED[:1])
        shown: list[str] = []
        answer = model.follow(asked, lambda text: not shown.append(text))
        assert (answer.text, shown[-1]) == (whole, whole)
        assert answer.tokens == len(model.answer_tokens([asked])[0]) >= len(shown) > 1
        assert answer.prompt_tokens == len(model.prompt_ids(asked))
        short = model.follow(asked, lambda text: True, max_new_tokens=2, tuned=False)
        assert [short.text] == model.answer([asked], max_new_tokens=2, tuned=False)
        assert (short.tokens, short.is_complete) == (2, False)
        stopped = model.follow(asked, lambda text: False)
        assert (stopped.tokens, stopped.is_complete) == (1, False)
        window = model.base.model.config.max_position_embeddings
        longest = model.follow(asked, lambda text: True, max_new_tokens=10 * window)
        assert longest.tokens <= window - answer.prompt_tokens


def test_prompts_are_written_as_in_training(tiny_adapter: Path) -> None:
    with open_adapter(tiny_adapter, device="cpu") as model:
        text = model.base.tokenizer.decode(model.prompt_ids((Message("user", "Hi"),)))
        prompt = model.base.tokenizer.decode(model.prompt_ids((Message("system", "Sing."), Message("user", "Hi"))))
    assert text == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert "Sing." in prompt
    assert "Be brief." not in prompt


@pytest.mark.parametrize(("given", "shown"), [("Sing.", "Sing."), ("", None)])
def test_another_system_message(tiny_adapter: Path, given: str, shown: str | None) -> None:
    with open_adapter(tiny_adapter, device="cpu", system_prompt=given) as model:
        text = model.base.tokenizer.decode(model.prompt_ids((Message("user", "Hi"),)))
    assert "Be brief." not in text
    assert ("system" in text) is (shown is not None)
    assert shown is None or shown in text


def test_the_history_is_part_of_the_question(tiny_adapter: Path) -> None:
    history = (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "And?"))
    with open_adapter(tiny_adapter, device="cpu") as model:
        ids = model.prompt_ids(history)
        assert "Hello!" in model.base.tokenizer.decode(ids)
        assert model.answer_tokens([history]) != model.answer_tokens(conversations(["And?"]))


def test_length_is_the_adapters_unless_another_is_given(tiny_adapter: Path) -> None:
    with open_adapter(tiny_adapter, device="cpu") as model:
        assert max(map(len, model.answer_tokens(ASKED, tuned=False))) <= 12
        short = model.answer_tokens(ASKED, max_new_tokens=2)
        assert max(map(len, short)) <= 2
        with pytest.raises(ConfigError, match="exceed the model's context"):
            model.answer_tokens(ASKED, max_new_tokens=5000)


def test_the_base_somewhere_else(
    tiny_adapter: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    with open_adapter(tiny_adapter, device="cpu") as model:
        expected = model.answer_tokens(ASKED)
    with caplog.at_level(logging.WARNING), open_adapter(tiny_adapter, base=str(moved), device="cpu") as model:
        assert model.base.source == str(moved)
        assert model.answer_tokens(ASKED) == expected
    assert not caplog.records
    other = make_tiny_model(tmp_path / "other", seed=1)
    with caplog.at_level(logging.WARNING), open_adapter(tiny_adapter, base=str(other), device="cpu"):
        pass
    [record] = caplog.records
    assert "is not the base model that this adapter was trained on" in record.getMessage()


def test_a_copy_of_the_base_in_the_adapters_folder_is_taken(
    tiny_adapter: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    shutil.copytree(tiny_model, folder / BASE_DIR)
    # Trained on the hub's model, whose digest is a commit: nothing to compare a folder's content with.
    metadata = read_metadata(folder)
    elsewhere = dataclasses.replace(metadata.model, name_or_path="nobody/nothing")
    write_metadata(folder, dataclasses.replace(metadata, model=elsewhere, base_digest="git:abc"))
    with open_adapter(tiny_adapter, device="cpu") as model:
        expected = model.answer_tokens(ASKED)
    with caplog.at_level(logging.WARNING), open_adapter(folder, device="cpu") as model:
        assert model.answer_tokens(ASKED) == expected
    assert not caplog.records
    merged = tmp_path / "merged"
    export_adapter(folder, merged, merged=True)
    assert (merged / "model.safetensors").is_file()
    assert "nobody/nothing" in (merged / "README.md").read_text("utf-8"), "the card names it as others find it"


def test_what_this_machine_cannot_do_is_done_otherwise(
    tiny_adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    metadata = read_metadata(folder)
    of_a_gpu = dataclasses.replace(metadata.model, dtype="float16", attn_implementation="flash_attention_2")
    write_metadata(folder, dataclasses.replace(metadata, model=of_a_gpu))
    with caplog.at_level(logging.WARNING), open_adapter(folder, device="cpu") as model:
        assert model.base.dtype == torch.float32
        assert model.answer_tokens(ASKED)
    assert "scored in float16" in caplog.text
    with pytest.raises(ConfigError, match="float16 needs a GPU"), open_adapter(folder, device="cpu", dtype="float16"):
        pass


def test_an_adapter_of_others_is_asked_in_its_base_models_format(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "foreign")
    (folder / METADATA_FILE).unlink()
    with open_adapter(folder, device="cpu") as model:
        assert model.metadata.system_prompt is None
        text = model.base.tokenizer.decode(model.prompt_ids((Message("user", "Hi"),)))
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_of_its_own(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "own")
    content = json.loads((folder / METADATA_FILE).read_text("utf-8"))
    content["model"]["chat_template"] = CHAT_TEMPLATE.replace("<|im_start|>assistant", "Answer:")
    (folder / METADATA_FILE).write_text(json.dumps(content), "utf-8")
    with open_adapter(folder, device="cpu") as model:
        assert model.base.tokenizer.decode(model.prompt_ids((Message("user", "Hi"),))).endswith("Answer:\n")


def test_what_is_no_adapter(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="is not an adapter"), open_adapter(tiny_model):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("text", "stop", "before", "certain"),
    [
        ("one two", ["two"], "one ", "one "),
        ("one two", ["x", "e"], "on", "on"),
        ("one tw", ["two"], None, "one "),
        ("one tw", ["wow", "tw!"], None, "one "),
        ("one", [], None, "one"),
    ],
)
def test_nothing_is_shown_that_may_begin_a_text_that_ends_the_answer(
    text: str, stop: list[str], before: str | None, certain: str
) -> None:
    assert adapted_model._before(text, stop) == before
    assert (adapted_model._certain(text, stop) if before is None else before) == certain
