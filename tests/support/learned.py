"""Checks that nothing is dropped silently: compares a file, read without lorahydra, with the tokens that carry loss.

```python
rows = [json.loads(line) for line in open("my.jsonl")]
print(silent_drops(rows, DataConfig(train_file="my.jsonl"), ChatFormat(tokenizer), tokenizer))
```
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat, load_splits, tokenize

__all__ = ["answers_of", "learned_texts", "silent_drops"]

ANSWERS = ("output", "completion", "answer", "response")
ASSISTANTS = ("assistant", "gpt", "chatgpt", "bot", "model", "function_call")


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """All texts of a row that should be learnt: answers, names and arguments of calls; not those of weight 0."""
    texts = [row[name] for name in ANSWERS if isinstance(row.get(name), str)]
    texts += [pair[1] for pair in _list(row.get("history"))]
    for turn in [*_list(row.get("messages")), *_list(row.get("conversations"))]:
        speaker, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if speaker not in ASSISTANTS or 0 in (turn.get("weight"), turn.get("train")):
            continue
        if speaker == "function_call":
            texts += _call(json.loads(text))
        elif text:
            texts.append(text)
        for call in _list(turn.get("tool_calls")):
            texts += _call(call.get("function", call))
    return texts


def learned_texts(config: DataConfig, chat: ChatFormat, tokenizer: Any, *, seed: int = 42) -> Iterator[str]:
    """The text that carries loss, for each row of all splits, one span after the other.

    Raises:
        LorahydraError: The data are refused, which is not silent.
    """
    for split in load_splits(config, seed):
        for row in tokenize(split, chat, max_length=config.max_length, overlong=config.overlong):
            yield tokenizer.decode([label for label in row["labels"].tolist() if label != -100])


def silent_drops(
    rows: Iterable[Mapping[str, Any]], config: DataConfig, chat: ChatFormat, tokenizer: Any, *, seed: int = 42
) -> list[str]:
    """Texts of the rows that should be learnt but carry loss in no row of any split, in the order of the rows.

    Rows that `data.overlong` leaves out or cuts are counted as missing, too.

    Raises:
        LorahydraError: The data are refused, which is not silent.
    """
    learned = list(learned_texts(config, chat, tokenizer, seed=seed))
    whole = "\n".join(learned)
    return [answer for row in rows for answer in answers_of(row) if answer.strip() not in whole]


def _call(function: Mapping[str, Any]) -> list[str]:
    arguments = function.get("arguments", {})
    values = (json.loads(arguments) if isinstance(arguments, str) else arguments).values()
    return [function["name"], *(value for value in values if isinstance(value, str))]


def _list(value: object) -> Sequence[Any]:
    if isinstance(value, str) and value.strip():
        value = json.loads(value)
    return value if isinstance(value, list) else []
