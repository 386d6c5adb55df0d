"""A tokenizer of transformers as llama.cpp's metadata, so that it makes the same tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["add_tokenizer", "check_splitting", "pre_tokenizer"]

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
WORD = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = (
    rf"{WORD}[{UPPER}]*[{LOWER}]+|{WORD}[{UPPER}]+[{LOWER}]*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = "bytes"
KNOWN: Mapping[tuple[str, ...], tuple[str, bool]] = {
    ("gpt2",): ("gpt-2", False),
    ("digits", "gpt2"): ("smollm", False),
    (QWEN2, BYTES): ("qwen2", False),
    (LLAMA3, BYTES): ("llama-bpe", True),
    (TEKKEN, BYTES): ("tekken", True),
}
"""By the steps that split a text: llama.cpp's name for them, and whether it takes words of the vocabulary whole."""


def add_tokenizer(
    writer: GGUFWriter, tokenizer: Any, size: int, *, chat_template: str, stop: Collection[int], adds_bos: bool
) -> None:
    """Write vocabulary, merges, special tokens and chat template.

    Args:
        writer: The file.
        tokenizer: A fast tokenizer of transformers.
        size: Rows of the embeddings; ids without a token get a placeholder.
        chat_template: Jinja text.
        stop: Ids that end an answer. llama.cpp has a place for three of them.
        adds_bos: Whether the beginning-of-sequence token precedes a prompt.

    Raises:
        ModelError: llama.cpp does not split text as this tokenizer does.
    """
    import gguf

    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    words = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(size):
        if number not in words:
            tokens.append(f"[PAD{number}]")
            kinds.append(gguf.TokenType.UNUSED)
            continue
        tokens.append(words[number])
        if number not in added:
            kinds.append(gguf.TokenType.NORMAL)
        else:
            is_control = added[number].special or _looks_like_control(words[number])
            kinds.append(gguf.TokenType.CONTROL if is_control else gguf.TokenType.USER_DEFINED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in backend["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(backend))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    _add_special(writer, tokenizer, stop)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template)


def check_splitting(tokenizer: Any) -> None:
    """Refuse a tokenizer of transformers that splits text in a way for which llama.cpp has no name."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("the model's tokenizer has no fast version (tokenizer.json), which is needed here")
    pre_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()))


def _add_special(writer: GGUFWriter, tokenizer: Any, stop: Collection[int]) -> None:
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    others = [number for number in stop if number != tokenizer.eos_token_id]
    for number, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)


def pre_tokenizer(backend: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer splits text before it merges bytes.

    Args:
        backend: The content of a `tokenizer.json`.

    Raises:
        ModelError: It is not known here, or llama.cpp has no such way.
    """
    model = backend["model"]
    splitter = backend.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    known = KNOWN.get(tuple(map(_step, steps)))
    normalizer = (backend.get("normalizer") or {"type": "NFC"})["type"]
    if known is None or model["type"] != "BPE" or normalizer != "NFC":
        raise ModelError(
            "the model's tokenizer splits text in a way for which llama.cpp's name is not known here: export with "
            "--merged alone, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    name, takes_words = known
    # Without merges it makes no difference.
    if bool(model.get("ignore_merges")) != takes_words and model["merges"]:
        raise ModelError(f"the model's tokenizer has ignore_merges={not takes_words}, and llama.cpp's {name} does not")
    return name


def _step(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "gpt2" if step.get("use_regex", True) else BYTES
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex"))
    return f"another step: {kind}"


def _looks_like_control(token: str) -> bool:
    """Whether a token is written as control tokens are; some tokenizers do not call all of theirs special."""
    return token.startswith("<|") and token.endswith("|>")
