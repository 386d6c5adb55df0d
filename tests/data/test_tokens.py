"""Tokenized splits: what they give, what the length limit does, and what is cached."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import Write, encode, make_tokenizer, qa

from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat, Split, TokenizedSplit, load_splits, tokenize
from lorahydra.errors import DataError

CHATTY = [
    {
        "messages": [
            {"role": role, "content": text * n}
            for role, text in (("user", "Q"), ("assistant", "A"), ("user", "P"), ("assistant", "B"))
        ]
    }
    for n in range(1, 40)
]


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer(template=CHAT_TEMPLATE))


@pytest.fixture
def split(write: Write) -> Split:
    return load_splits(DataConfig(train_file=str(write("a.jsonl", [*qa(600), *qa(5)]))), 0).train


def dropped(tokens: TokenizedSplit) -> int:
    return len(tokens.fit.lengths) - len(tokens)


def loss_tokens(tokens: TokenizedSplit) -> int:
    return int(tokens.fit.loss[tokens.fit.learned].sum())


def long_split(write: Write) -> Split:
    """Rows of 60 to 79 tokens, of which the prompt has 50 to 59 and the answer, with its end, 10 to 20."""
    rows = [{"question": "q" * (20 + n), "answer": "a" * (8 + n)} for n in range(10)]
    config = DataConfig(train_file=str(write("long.jsonl", rows)), validation_file="demo", test_fraction=0)
    return load_splits(config, 0).train


def test_rows_are_those_of_the_chat_format(split: Split, chat: ChatFormat) -> None:
    tokens = tokenize(split, chat, max_length=1024, overlong="error")
    assert len(tokens) == len(split)
    for example, row in zip(split, tokens, strict=True):
        encoded = encode(chat, example)
        assert row["input_ids"].tolist() == encoded.input_ids
        assert row["labels"].tolist() == encoded.labels
        assert row["input_ids"].dtype == row["labels"].dtype == np.int64
    assert tokens.lengths.tolist() == [len(row["input_ids"]) for row in tokens]
    assert loss_tokens(tokens) == sum(int((row["labels"] != -100).sum()) for row in tokens)
    assert (dropped(tokens), tokens.fit.cut) == (0, 0)
    assert tokens[-1]["input_ids"].tolist() == tokens[len(tokens) - 1]["input_ids"].tolist()
    with pytest.raises(IndexError):
        tokens[len(tokens)]


def test_every_turn_of_long_conversations_has_loss(write: Write, chat: ChatFormat) -> None:
    config = DataConfig(train_file=str(write("c.jsonl", CHATTY)), validation_file="demo", test_fraction=0)
    split = load_splits(config, 0).train
    tokens = tokenize(split, chat, max_length=1024, overlong="error")
    assert [int((row["labels"] != -100).sum()) for row in tokens] == [2 * (n + 1) for n in range(1, 40)]
    assert loss_tokens(tokens) == sum(2 * (n + 1) for n in range(1, 40))


def test_a_torch_loader_reads_it(split: Split, chat: ChatFormat) -> None:
    from torch.utils.data import DataLoader

    tokens = tokenize(split, chat, max_length=1024, overlong="error")
    loader: Any = DataLoader(tokens, batch_size=1, shuffle=False)  # type: ignore[arg-type]
    first = next(iter(loader))
    assert first["input_ids"].tolist() == [tokens[0]["input_ids"].tolist()]
    # A row may be changed by whoever gets it.
    tokens[0]["input_ids"][:] = 0
    assert tokens[0]["input_ids"].any()


def test_it_can_be_sent_to_another_process(split: Split, chat: ChatFormat) -> None:
    tokens = tokenize(split, chat, max_length=1024, overlong="error")
    copy = pickle.loads(pickle.dumps(tokens))
    assert copy[3]["input_ids"].tolist() == tokens[3]["input_ids"].tolist()


class TestOverlong:
    def test_error_names_file_line_count_and_ways_out(self, write: Write, chat: ChatFormat) -> None:
        split = long_split(write)
        lengths = [len(encode(chat, example).input_ids) for example in split]
        limit = lengths[6]
        with pytest.raises(DataError) as caught:
            tokenize(split, chat, max_length=limit, overlong="error")
        assert str(caught.value) == (
            f"{split.source}:8: {lengths[7]} tokens, over data.max_length={limit} (3 of 10 rows of the train "
            "split do not fit): raise data.max_length, or set data.overlong=drop or data.overlong=truncate"
        )

    def test_drop_leaves_them_out(self, write: Write, chat: ChatFormat) -> None:
        split = long_split(write)
        limit = len(encode(chat, split[6]).input_ids)
        tokens = tokenize(split, chat, max_length=limit, overlong="drop")
        assert (len(tokens), dropped(tokens), tokens.fit.cut) == (7, 3, 0)
        assert max(tokens.lengths) == limit
        assert tokens.indices.tolist() == list(range(7))
        assert len(tokens.fit.lengths) == 10
        assert loss_tokens(tokens) == sum(len(example.messages[1].content) + 1 for example in split[:7])

    def test_truncate_cuts_the_end(self, write: Write, chat: ChatFormat) -> None:
        split = long_split(write)
        limit = len(encode(chat, split[6]).input_ids)
        tokens = tokenize(split, chat, max_length=limit, overlong="truncate")
        assert (len(tokens), dropped(tokens), tokens.fit.cut) == (10, 0, 3)
        for example, row in zip(split, tokens, strict=True):
            encoded = encode(chat, example)
            assert row["input_ids"].tolist() == encoded.input_ids[:limit]
            assert row["labels"].tolist() == encoded.labels[:limit]
        assert loss_tokens(tokens) == sum(int((row["labels"] != -100).sum()) for row in tokens)

    def test_truncate_drops_what_would_have_no_loss(self, write: Write, chat: ChatFormat) -> None:
        split = long_split(write)
        prompts = [len(chat.prompt_ids(example)) for example in split]
        tokens = tokenize(split, chat, max_length=prompts[4] + 1, overlong="truncate")
        assert (len(tokens), dropped(tokens), tokens.fit.cut) == (5, 5, 5)
        assert all((row["labels"] != -100).any() for row in tokens)
        tokens = tokenize(split, chat, max_length=prompts[4], overlong="truncate")
        assert (len(tokens), dropped(tokens)) == (4, 6)

    @pytest.mark.parametrize("overlong", ["drop", "truncate"])
    def test_nothing_left_is_refused(self, write: Write, chat: ChatFormat, overlong: str) -> None:
        with pytest.raises(DataError, match=r"no row of the train split is left: .* over data\.max_length=8: raise"):
            tokenize(long_split(write), chat, max_length=8, overlong=overlong)


class TestRoom:
    """Prompts that are answered, in the model's context."""

    @pytest.fixture
    def held(self, write: Write) -> Split:
        """Four rows; the prompt of the third is long, and the answer of the fourth."""
        rows = [*qa(2), {"question": "Q" * 100, "answer": "A"}, {"question": "Q", "answer": "A" * 100}]
        config = DataConfig(train_file="demo", validation_file=str(write("v.jsonl", rows)))
        return load_splits(config, 0).validation

    def fit(self, held: Split, chat: ChatFormat, overlong: str, **limits: Any) -> TokenizedSplit:
        return tokenize(held, chat, **{"max_length": 400, "window": 150, **limits}, overlong=overlong)

    def test_an_error_names_the_row_whatever_does_not_fit(self, held: Split, chat: ChatFormat) -> None:
        room = r"v\.jsonl:3: \d+ tokens of prompt and evaluation\.max_new_tokens=40 exceed the model's context of 150 "
        with pytest.raises(DataError, match=room + r".*1 of 4 rows of the validation split.*overlong=drop"):
            self.fit(held, chat, "error", max_new_tokens=40)
        with pytest.raises(DataError, match=r"v\.jsonl:3: \d+ tokens, over the model's context of 120 .*overlong=drop"):
            self.fit(held, chat, "error", window=120)
        assert len(self.fit(held, chat, "error", max_new_tokens=1)) == 4

    def test_drop_leaves_a_row_out_of_loss_and_answers(self, held: Split, chat: ChatFormat) -> None:
        tokens = self.fit(held, chat, "drop", max_new_tokens=40, max_length=100)
        assert tokens.fit.used.tolist() == tokens.indices.tolist() == [0, 1]
        assert tokens.prompts() == [chat.prompt_ids(example) for example in held[:2]]
        assert list(tokens.fit.warnings("validation")) == [
            "validation: 1 of 4 rows are left out: the prompt and evaluation.max_new_tokens=40 exceed the model's "
            "context of 150 tokens",
            "validation: 1 of 4 rows are left out: longer than data.max_length=100 tokens",
        ]

    def test_truncate_asks_with_the_whole_prompt_or_not_at_all(self, held: Split, chat: ChatFormat) -> None:
        tokens = self.fit(held, chat, "truncate", max_new_tokens=40, max_length=45)
        assert tokens.fit.used.tolist() == [0, 1, 3]
        assert tokens.prompts() == [chat.prompt_ids(held[row]) for row in (0, 1, 3)]
        tokens = self.fit(held, chat, "truncate", max_new_tokens=1, max_length=45)
        assert (tokens.fit.used.tolist(), tokens.indices.tolist()) == ([0, 1, 2, 3], [0, 1, 3])
        assert list(tokens.fit.warnings("validation"))[-1].startswith("validation: 1 of 4 rows are answered, but are")

    def test_a_test_split_may_end_up_empty(self, held: Split, chat: ChatFormat) -> None:
        held.name = "test"
        assert not len(self.fit(held, chat, "drop", max_length=8).fit.used)


class TestCache:
    def test_the_same_content_and_format_are_tokenized_once(
        self, split: Split, chat: ChatFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        cache = tmp_path / "c"
        first = tokenize(split, chat, max_length=1024, overlong="error", cache=cache)
        again = ChatFormat(make_tokenizer(template=CHAT_TEMPLATE))
        # Another limit costs nothing.
        for limit in (1024, 40):
            tokenize(split, again, max_length=limit, overlong="truncate", cache=cache)
        assert [record.message for record in caplog.records].count(
            f"Tokenizing {len(split)} rows of the train split"
        ) == 1
        other = ChatFormat(make_tokenizer(template=CHAT_TEMPLATE), system_prompt="Be brief.")
        assert (
            tokenize(split, other, max_length=1024, overlong="error", cache=cache).lengths.sum() > first.lengths.sum()
        )

    def test_a_damaged_entry_is_made_again(self, split: Split, chat: ChatFormat, tmp_path: Path) -> None:
        cache = tmp_path / "c"
        first = [
            row["input_ids"].tolist() for row in tokenize(split, chat, max_length=99, overlong="error", cache=cache)
        ]
        for file in cache.rglob("*.arrow"):
            file.write_bytes(b"\0" * file.stat().st_size)
        tokens = tokenize(split, chat, max_length=99, overlong="error", cache=cache)
        assert [row["input_ids"].tolist() for row in tokens] == first


def test_a_conversation_that_the_template_refuses_is_named_by_file_and_line(write: Write) -> None:
    rows = [*qa(3), {"question": "refuse me", "answer": "A"}]
    config = DataConfig(train_file=str(write("a.jsonl", rows)), validation_file="demo", test_fraction=0)
    template = "{% if 'refuse' in messages[0]['content'] %}{{ raise_exception('No\nway') }}{% endif %}" + CHAT_TEMPLATE
    chat = ChatFormat(make_tokenizer(template=template))
    with pytest.raises(DataError, match=r"a\.jsonl:4: the model's chat template refuses this conversation \(No way\)"):
        tokenize(load_splits(config, 0).train, chat, max_length=1024, overlong="error")
