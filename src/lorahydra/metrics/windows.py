"""BERTScore with the parts of `bert-score`, also of texts that are longer than the encoder's window.

`bert-score` truncates them silently. Here the encoder reads a long text in windows that overlap, each token's
embedding is taken from the window in which it has more text on both sides, and the greedy matching of BERTScore runs
over all tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from bert_score.utils import bert_cos_score_idf, bert_encode, greedy_cos_idf, sent_encode
from torch import Tensor

__all__ = ["Encoder", "Window", "windows"]

OVERLAP = 4
"""One token in this many of a window's is also in the next window."""
UNLIMITED = 10**9


@dataclass(frozen=True)
class Window:
    """Part of a text's tokens; positions among them, ends not included."""

    start: int
    end: int
    kept_from: int
    """The first one whose embedding is taken from this window."""
    kept_to: int


def windows(length: int, room: int) -> list[Window]:
    """Cut `length` tokens into windows of at most `room`; every token is kept once."""
    if length <= room:
        return [Window(0, length, 0, length)]
    step = max(1, room - room // OVERLAP)
    starts = [*range(0, length - room, step), length - room]
    # The middle of what two windows share.
    cuts = [0, *((left + room + right) // 2 for left, right in pairwise(starts)), length]
    return [Window(start, start + room, cuts[at], cuts[at + 1]) for at, start in enumerate(starts)]


@dataclass
class Encoder:
    """The model and tokenizer that `bert-score` uses; a batch is of texts or windows that are encoded together."""

    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        """Find out which special tokens are put around a text."""
        self.window: int = self.tokenizer.model_max_length
        """Most tokens that the encoder reads at once, special ones included."""
        around, probe = self.tokenizer.encode(""), self.tokenizer.encode("a")
        self.head = next(at for at, token in enumerate([*probe, None]) if token not in around[at : at + 1])
        """Special tokens in front of a text."""
        self.tail = len(around) - self.head
        """Special tokens behind it."""

    def tokens(self, text: str) -> list[int]:
        """All tokens of a text as `bert-score` makes them, special ones around them included."""
        self.tokenizer.model_max_length = UNLIMITED
        try:
            # An empty text makes bert-score crash with transformers 5.
            tokens: list[int] = sent_encode(self.tokenizer, text) if text.strip() else self.tokenizer.encode("")
            return tokens
        finally:
            self.tokenizer.model_max_length = self.window

    def score_texts(self, predictions: list[str], references: list[str], batch_size: int) -> Tensor:
        """Precision, recall and F1 of texts that fit the window, as `bert-score` computes them; shape `(texts, 3)`."""
        weights = defaultdict(lambda: 1.0, {self.tokenizer.sep_token_id: 0.0, self.tokenizer.cls_token_id: 0.0})
        texts = (self.model, references, predictions, self.tokenizer, weights)
        scores: Tensor = bert_cos_score_idf(*texts, device=self.model.device, batch_size=batch_size)
        return scores

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int) -> Tensor:
        """Precision, recall and F1 of predictions against references, all given as tokens; shape `(pairs, 3)`."""
        rows = [torch.zeros(0, 3)]
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            embedded = self.embedded([tokens for pair in batch for tokens in pair], batch_size)
            for prediction, reference in zip(embedded, embedded, strict=True):
                scores = greedy_cos_idf(*self._inputs(reference), *self._inputs(prediction))
                rows.append(torch.stack(scores, dim=-1).cpu())
        return torch.cat(rows)

    def _inputs(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of one text: embeddings, mask and weights, where special tokens have none."""
        weights = torch.ones(1, len(embeddings))
        weights[:, : self.head] = 0
        weights[:, len(embeddings) - self.tail :] = 0
        embeddings = embeddings[None].to(self.model.device)
        return embeddings, torch.ones(embeddings.shape[:2], device=embeddings.device), weights

    @torch.no_grad()
    def embedded(self, texts: Sequence[list[int]], batch_size: int) -> Iterator[Tensor]:
        """The embeddings of each text, given as tokens; shape `(tokens, hidden)`, special tokens included."""
        head, tail = self.head, self.tail
        cut = [windows(len(tokens) - head - tail, self.window - head - tail) for tokens in texts]
        rows = [
            [*tokens[:head], *tokens[head + part.start : head + part.end], *tokens[len(tokens) - tail :]]
            for tokens, parts in zip(texts, cut, strict=True)
            for part in parts
        ]
        encoded = self._encoded(rows, batch_size)
        for parts in cut:
            pieces = []
            for part in parts:
                row = next(encoded)
                first = 0 if part.kept_from == 0 else head + part.kept_from - part.start
                last = len(row) if part is parts[-1] else head + part.kept_to - part.start
                pieces.append(row[first:last])
            yield torch.cat(pieces)

    def _encoded(self, rows: Sequence[list[int]], batch_size: int) -> Iterator[Tensor]:
        """What the encoder makes of each row of tokens, in order."""
        padding = self.tokenizer.pad_token_id
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = max(len(row) for row in batch)
            ids = torch.tensor([row + [padding] * (longest - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            device = self.model.device
            states = bert_encode(self.model, ids.to(device), mask.to(device)).cpu()
            yield from (state[: len(row)] for state, row in zip(states, batch, strict=True))
