"""What is offered for a file that cannot be read as it is: encodings with a preview, and columns to map."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from tests.service.test_uploads import FORM, part

from lorahydra.config.data import DataConfig
from lorahydra.service.datasets import _renamed
from lorahydra.service.errors import InvalidError
from lorahydra.service.held import MOST, SECONDS, HeldUploads
from lorahydra.service.offers import make_offer
from lorahydra.service.uploads import Upload, read_columns

RUSSIAN = "Вопрос;Ответ\r\n" + "".join(f"Как сбросить пароль {n}?;Нажмите кнопку {n}.\r\n" for n in range(9))


def config(folder: Path, content: bytes, name: str = "rows.csv") -> DataConfig:
    (folder / name).write_bytes(content)
    return DataConfig(train_file=str(folder / name))


@pytest.mark.parametrize("encoding", ["windows-1251", "koi8-r", "cp866", "utf-16-le"])
def test_the_encoding_and_the_columns_of_russian_text(tmp_path: Path, encoding: str) -> None:
    offer = make_offer(config(tmp_path, RUSSIAN.encode(encoding)), is_encoding_given=False)
    assert offer is not None
    assert offer["encodings"][0]["name"] == encoding
    assert offer["encodings"][0]["text"].startswith("Вопрос;Ответ\nКак сбросить пароль 0?")
    texts = [one["text"] for one in offer["encodings"]]
    assert len(set(texts)) == len(texts)
    assert (offer["columns"], offer["request"], offer["answer"]) == (["Вопрос", "Ответ"], 0, 1)
    assert offer["rows"][1] == ["Как сбросить пароль 1?", "Нажмите кнопку 1."]


@pytest.mark.parametrize(
    ("header", "request_place", "answer_place"),
    [
        ("id;Ответ;Запрос", 2, 1),
        ("a;b;c", 0, 1),
        ("Reply;Text", 1, 0),
        ("prompt;completion;question;answer", 2, 3),
    ],
)
def test_columns_are_guessed_by_their_names(tmp_path: Path, header: str, request_place: int, answer_place: int) -> None:
    row = ";".join("xyzw"[: header.count(";") + 1])
    offer = make_offer(config(tmp_path, f"{header}\n{row}\n".encode()), is_encoding_given=False)
    assert offer is not None
    assert offer["encodings"] == []
    assert offer["columns"] == header.split(";")
    assert (offer["request"], offer["answer"]) == (request_place, answer_place)


def test_columns_of_other_formats(tmp_path: Path) -> None:
    offer = make_offer(config(tmp_path, b'{"q": "x", "r": {"s": 1}}', "rows.jsonl"), is_encoding_given=False)
    assert offer is not None
    assert (offer["columns"], offer["rows"]) == (["q", "r"], [["x", '{"s": 1}']])
    parquet.write_table(pyarrow.table({"q": ["x"], "r": ["y"]}), tmp_path / "rows.parquet")
    offer = make_offer(DataConfig(train_file=str(tmp_path / "rows.parquet")), is_encoding_given=False)
    assert offer is not None
    assert (offer["columns"], offer["rows"]) == (["q", "r"], [["x", "y"]])


@pytest.mark.parametrize(
    "content",
    [
        "question,answer\nПочему?,\n".encode(),
        b"question,answer\n\xcf\xf0\xe8\xe2\xe5\xf2,x\n" + "Привет,мир\n".encode() * 20,
        bytes(range(256)) * 100,
        b"only one column\nx\n",
    ],
)
def test_nothing_is_offered_for_other_faults(tmp_path: Path, content: bytes) -> None:
    assert make_offer(config(tmp_path, content), is_encoding_given=False) is None


def test_the_encoding_is_not_asked_again(tmp_path: Path) -> None:
    offer = make_offer(config(tmp_path, "Вопрос;Ответ\nx;y\n".encode()), is_encoding_given=True)
    assert offer is not None
    assert offer["encodings"] == []


def test_columns_as_the_command_line_writes_them() -> None:
    assert read_columns(" question = Вопрос ,answer=b=c") == {"question": "Вопрос", "answer": "b=c"}
    assert read_columns(None) == {}
    for text in ("question", "question=", "label=x", "question=" + "x" * 1000):
        with pytest.raises(InvalidError, match="NAME=COLUMN"):
            read_columns(text)


def test_few_uploads_wait_and_each_is_taken_once(tmp_path: Path) -> None:
    held = HeldUploads()
    tokens = []
    for number in range(MOST + 1):
        with Upload(tmp_path, FORM, 100) as upload:
            upload.feed(part("file", "{}", f"{number}.jsonl") + b"--x--\r\n")
            tokens.append(held.hold(1, upload, {"columns": []}))
    assert len(list(tmp_path.iterdir())) == MOST
    for project, token in ((1, tokens[0]), (2, tokens[1]), (1, "unknown")):
        with pytest.raises(InvalidError, match="upload it again"), held.take(project, token):
            pass
    with held.take(1, tokens[2]) as (upload, offer):
        assert (upload.name, offer) == ("2.jsonl", {"columns": []})
        upload.keep()
    with pytest.raises(InvalidError), held.take(1, tokens[2]):
        pass
    before = len(list(tmp_path.iterdir()))
    held.expire(time.monotonic() + SECONDS - 60)
    assert len(list(tmp_path.iterdir())) == before
    held.expire(time.monotonic() + SECONDS)
    assert [file.name for file in tmp_path.iterdir()] == [upload.path.name]
    held.close()
    assert [file.name for file in tmp_path.iterdir()] == [upload.path.name]


def test_a_column_in_another_encoding_than_it_was_shown_in() -> None:
    shown = "Вопрос".encode("windows-1251").decode("koi8-r")
    assert _renamed(shown, "koi8-r", "windows-1251") == "Вопрос"
    for encoding in ("nonsense", "hex", "undefined", "\0"):
        assert _renamed("Вопрос", "windows-1251", encoding) == "Вопрос", "the check refuses the encoding"
