"""Files, datasets and tokenizers made on the spot for the data tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat, Example
from lorahydra.data.chat.chat_format import IGNORE_INDEX
from lorahydra.data.ingest import Rows
from lorahydra.data.loading import read_sources

Write = Callable[[str, Any], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write bytes, text, or rows as JSON lines, to a file in the test's folder."""

    def write(name: str, content: bytes | str | Iterable[object]) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, "utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
        return path

    return write


def qa(count: int, start: int = 0) -> list[dict[str, str]]:
    """Distinct question/answer rows."""
    return [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}."} for n in range(start, start + count)]


def train_rows(path: Path | str | None = None, **options: Any) -> Rows:
    """What is read of a file as training data, without splitting it."""
    if path is not None:
        options["train_file"] = str(path)
    [rows] = read_sources(DataConfig(**options), None)["train"].parts
    return rows


def pairs(rows: Rows) -> list[tuple[str, ...]]:
    """The texts of each row."""
    return [tuple(message.content for message in rows.example(n).messages) for n in range(len(rows))]


def make_tokenizer(
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    *,
    eos: str | None = "<|im_end|>",
    bos: str | None = None,
    adds_bos: bool = False,
    merges: Sequence[tuple[str, str]] = (),
    template: str | None = None,
) -> Any:
    """A byte-level tokenizer: one token per byte but for the special tokens and the merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocab = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    # No splitting into words, so that merges may cross any border.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos and bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in special if t not in (eos, bos)]})
    tokenizer.chat_template = template
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """An example as the model sees it in training; labels are the tokens themselves where they carry loss."""

    input_ids: list[int]
    labels: list[int]


def encode(chat: ChatFormat, example: Example) -> Encoded:
    """Tokenize one example."""
    [(ids, spans, _)] = chat.encode_batch([example])
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in spans:
        labels[start:end] = ids[start:end]
    return Encoded(ids, labels)


def reference(chat: ChatFormat, example: Example) -> str:
    """The last answer as a model would give it that has learnt its tokens perfectly."""
    return chat.answer_text(encode(chat, example).input_ids[len(chat.prompt_ids(example)) :])
