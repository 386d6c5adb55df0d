"""Tokenized splits: made once per content and chat format, kept on disk, and cut to the limit on reading."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorahydra.data.arrow_cache import RowSequence, Store, Writer, cached, data_cache
from lorahydra.data.chat.chat_format import IGNORE_INDEX, ChatFormat, Tokens
from lorahydra.data.chat.row_warnings import RowWarning
from lorahydra.data.examples import Example
from lorahydra.data.length_limits import Fit
from lorahydra.data.splits import Split
from lorahydra.errors import DataError

__all__ = ["TokenizedSplit", "all_warnings", "encode_split", "encoded_sides", "measure", "row_warnings", "tokenize"]

logger = logging.getLogger(__name__)

BATCH = 256
VERSION = 2
"""Part of an entry's name: raise it when the same conversation is tokenized differently, or facts are added."""
INPUT_IDS, SPANS, REJECTED_IDS, REJECTED_SPANS = range(4)
"""Columns; only a split of pairs has the last two."""


class TokenizedSplit(RowSequence[dict[str, npt.NDArray[np.int64]]]):
    """Examples of a split as tokens, read from disk when asked for; a map-style dataset for torch, made by `tokenize`.

    Each has `input_ids` and `labels` of shape (tokens,); a pair of answers has these for the chosen one, and
    `rejected_ids` and `rejected_labels` for the other.
    """

    def __init__(self, store: Store, fit: Fit, content: str, warnings: list[str]) -> None:
        super().__init__(fit.learned)
        self._store = store
        self._limit = Fit.limit(fit.max_length, fit.window)
        self.warnings = warnings
        """What is unusual about rows of the split, one line each; see `row_warnings`."""
        self.fit = fit
        """How the rows of the split fit the limits."""
        self.lengths = np.minimum(fit.lengths[fit.learned], self._limit)
        """Tokens of each example, of a pair those of the longer side; shape (number of examples,)."""
        cut = f" {self._limit}" if fit.cut else ""
        self.digest = hashlib.sha256(f"{content}{cut} ".encode() + fit.learned.tobytes()).hexdigest()
        """Digest of the examples."""
        chunks = [chunk for ids, _ in _sides(store) for chunk in store.items(ids).chunks if len(chunk)]
        self.highest_id = max((int(chunk.to_numpy().max()) for chunk in chunks), default=0)
        """The largest token id in any row."""

    def prompts(self) -> list[list[int]]:
        """Tokens of the prompts that are answered, each as it begins its example."""
        return [self._ids(row)[: self.fit.prompts[row]].tolist() for row in self.fit.answered.tolist()]

    def answers(self) -> list[list[int]]:
        """Tokens of the reference answers to `prompts`, uncut and with their end."""
        return [self._ids(row)[self.fit.prompts[row] :].tolist() for row in self.fit.answered.tolist()]

    def _ids(self, row: int, column: int = INPUT_IDS) -> npt.NDArray[np.int32]:
        ids: npt.NDArray[np.int32] = self._store.value(column, row).values.to_numpy()
        return ids

    def _read(self, row: int) -> dict[str, npt.NDArray[np.int64]]:
        sides = zip(("input_ids", "rejected_ids"), ("labels", "rejected_labels"), _sides(self._store), strict=False)
        read: dict[str, npt.NDArray[np.int64]] = {}
        for ids_name, labels_name, (ids_column, spans_column) in sides:
            ids = self._ids(row, ids_column)[: self._limit].astype(np.int64)
            labels = np.full_like(ids, IGNORE_INDEX)
            for start, end in self._store.value(spans_column, row).values.to_numpy().reshape(-1, 2):
                labels[start:end] = ids[start:end]
            read |= {ids_name: ids, labels_name: labels}
        return read


def tokenize(
    split: Split,
    chat: ChatFormat,
    *,
    max_length: int,
    overlong: str,
    window: int | None = None,
    max_new_tokens: int = 0,
    cache: Path | None = None,
) -> TokenizedSplit:
    """Tokenize a split, or open it from the cache (by default the user's); the limits are those of `Fit`.

    Raises:
        DataError: An example does not fit with `overlong=error`, or the template refuses one.
        OutputError: The cache cannot be written.
    """
    store = encode_split(split, chat, cache)
    fit = measure(store, max_length, overlong, window, max_new_tokens)
    if overlong == "error" and len(faults := fit.faults):
        first = int(faults[0])
        raise DataError(
            f"{fit.fault(first)} ({len(faults)} of {len(split)} rows of the {split.name} split do not fit): "
            f"{fit.ways_out(first)}",
            path=split.source_of(first),
            line=split.line(first),
        )
    # A study can do without a test split, but not without the others.
    if not len(fit.learned) and split.name != "test":
        raise DataError(f"no row of the {split.name} split is left: {fit.nothing_left()}", path=split.source)
    return TokenizedSplit(store, fit, _content(split, chat), row_warnings(split, store, chat))


def measure(store: Store, max_length: int, overlong: str, window: int | None, max_new_tokens: int) -> Fit:
    """Compare a tokenized split, from `encode_split`, with the limits; the other arguments are those of `tokenize`."""
    lengths, losses = [], []
    for ids, spans in _sides(store):
        borders, counts = store.items(spans).to_numpy(), store.lengths(spans)
        starts, ends = np.minimum(borders.reshape(-1, 2), Fit.limit(max_length, window)).astype(np.int64).T
        rows = np.repeat(np.arange(len(store)), counts // 2)
        losses.append(np.bincount(rows, weights=ends - starts, minlength=len(store)).astype(np.int64))
        lengths.append(store.lengths(ids))
    # The last span begins where the prompt ends.
    prompts = store.items(SPANS).to_numpy()[np.cumsum(store.lengths(SPANS)) - 2].astype(np.int64)
    # Both sides of a pair have to fit.
    longest, least = np.max(lengths, axis=0), np.min(losses, axis=0)
    return Fit(longest, prompts, least, max_length, overlong, window, max_new_tokens)


def _sides(store: Store) -> list[tuple[int, int]]:
    """The columns of ids and spans, one pair of them for each side of an example."""
    sides = [(INPUT_IDS, SPANS), (REJECTED_IDS, REJECTED_SPANS)]
    return sides[: store.columns // 2]


def encode_split(split: Split, chat: ChatFormat, cache: Path | None) -> Store:
    """Tokenize every example in full; the limit is applied on reading, so that changing it costs nothing."""
    import pyarrow as pa

    key = hashlib.sha256(f"{_content(split, chat)} {chat.special_tokens} {VERSION}".encode()).hexdigest()
    names = ["input_ids", "spans"]
    if len(split) and split[0].rejected:
        names += ["rejected_ids", "rejected_spans"]
    schema = pa.schema({name: pa.list_(pa.int32()) for name in names})

    def build(writer: Writer) -> Mapping[str, Any]:
        logger.info("Tokenizing %d rows of the %s split", len(split), split.name)
        counts: dict[str, tuple[int, int]] = {}
        for start in range(0, len(split), BATCH):
            examples = split[start : start + BATCH]
            for number, sides in enumerate(zip(*encoded_sides(examples, chat), strict=True), start):
                row = [part for _, tokens in sides for part in (tokens.input_ids, list(chain(*tokens.spans)))]
                writer.add(tuple(row), 4 * sum(len(tokens.input_ids) for _, tokens in sides))
                for warning in dict.fromkeys(w for side, tokens in sides for w in all_warnings(chat, side, tokens)):
                    first, count = counts.get(warning.name, (number, 0))
                    counts[warning.name] = (first, count + 1)
        # Entries of the cache that earlier versions made have this key.
        return {"rows": len(split), "odd": counts}

    return cached(data_cache(cache) / "tokens" / key, schema, build)


def encoded_sides(examples: Sequence[Example], chat: ChatFormat) -> list[list[tuple[Example, Tokens]]]:
    """The examples with their tokens, and if they are pairs, also those with the rejected answers.

    Raises:
        DataError: The template refuses one.
    """
    sides = [examples]
    if examples and examples[0].rejected:
        sides.append([replace(example, messages=example.rejected, rejected=()) for example in examples])
    return [list(zip(side, chat.encode_batch(side), strict=True)) for side in sides]


def all_warnings(chat: ChatFormat, example: Example, tokens: Tokens) -> list[RowWarning]:
    """What is unusual about an example, and what its tokens lack."""
    return [*chat.row_warnings(example), *tokens.lost]


def row_warnings(split: Split, store: Store, chat: ChatFormat) -> list[str]:
    """What is unusual about rows of a split, one line each; the store is from `encode_split`."""
    return [
        RowWarning[name].warning(
            f"{split.name}: {count} of {len(split)} rows",
            split.place(first),
            chat.special_tokens,
        )
        for name, (first, count) in store.facts["odd"].items()
    ]


def _content(split: Split, chat: ChatFormat) -> str:
    """Digest of a split and of how it becomes tokens."""
    return hashlib.sha256(f"{split.digest} {chat.fingerprint}".encode()).hexdigest()
