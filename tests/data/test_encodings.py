"""Encodings told from content: the error names the right one, and `data.encoding` then reads the same text."""

from __future__ import annotations

import json

import pytest
from tests.data.conftest import Write, pairs, train_rows

from lorahydra.config.schema import DataConfig
from lorahydra.data import check
from lorahydra.errors import ConfigError, DataError

RUSSIAN = ["Как оформить возврат товара?", "Напишите нам на почту, и мы вернём деньги.", "Где заказ?", "Ждите завтра."]
FRENCH = ["Où est mon café préféré ?", "Il est fermé à Noël, désolé.", "Ça va ?", "Très bien, merci."]
GERMAN = ["Wo finde ich den Schlüssel für die Tür?", "Er hängt über dem Spiegel.", "Wann?", "Später."]
POLISH = ["Gdzie jest moja przesyłka?", "Wysłaliśmy ją wczoraj, będzie jutro.", "Kiedy?", "W południe."]
JAPANESE = ["返品の方法を教えてください。", "メールでご連絡ください。", "注文はどこですか", "明日届きます"]
CHINESE = ["如何退货？", "请发送电子邮件，我们将在三天内退款。", "我的订单在哪里？", "明天送达。"]

ENCODED = [
    ("windows-1251", RUSSIAN),
    ("koi8-r", RUSSIAN),
    ("cp866", RUSSIAN),
    ("iso-8859-5", RUSSIAN),
    ("utf-16-le", RUSSIAN),
    ("utf-16-be", RUSSIAN),
    ("utf-32-le", RUSSIAN),
    ("windows-1252", FRENCH),
    ("windows-1252", GERMAN),
    ("utf-16-le", FRENCH),
    ("windows-1250", POLISH),
    ("shift_jis", JAPANESE),
    ("euc-jp", JAPANESE),
    ("iso-2022-jp", JAPANESE),
    ("utf-16-be", JAPANESE),
    ("gbk", CHINESE),
    ("big5", ["如何退貨？", "請發送電子郵件。", "我的訂單在哪裡？", "明天送達。"]),
    ("utf-16-le", CHINESE),
]


def rows_of(texts: list[str]) -> list[tuple[str, str]]:
    return list(zip(texts[::2], texts[1::2], strict=True))


def as_csv(texts: list[str]) -> str:
    return "question,answer\r\n" + "".join(f'"{q}","{a}"\r\n' for q, a in rows_of(texts))


def as_json_lines(texts: list[str]) -> str:
    rows = ({"question": q, "answer": a} for q, a in rows_of(texts))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_json(texts: list[str]) -> str:
    return json.dumps([{"question": q, "answer": a} for q, a in rows_of(texts)], ensure_ascii=False, indent=1)


FORMS = {"a.csv": as_csv, "a.jsonl": as_json_lines, "a.json": as_json}


@pytest.mark.parametrize(("encoding", "texts"), ENCODED, ids=[f"{e}-{t[0][:2]}" for e, t in ENCODED])
@pytest.mark.parametrize("name", FORMS)
def test_the_error_names_the_encoding_which_then_reads_the_file(
    write: Write, name: str, encoding: str, texts: list[str]
) -> None:
    path = write(name, FORMS[name](texts).encode(encoding))
    with pytest.raises(DataError) as caught:
        train_rows(path).require_valid()
    message = str(caught.value)
    assert f"set data.encoding={encoding}," in message
    assert texts[0][:12] in message
    assert "iconv -f" in message
    assert "\n" not in message
    rows = train_rows(path, encoding=encoding)
    assert pairs(rows) == rows_of(texts)
    assert not rows.problems


def test_a_file_in_another_encoding_is_one_line_of_the_report_and_all_rows_are_counted(write: Write) -> None:
    path = write("a.csv", ("question,answer\n" + "Вопрос,Ответ\n" * 30).encode("cp1251"))
    report = check(DataConfig(train_file=str(path)), 0, chat=None)
    assert (len(report.problems), report.total_problems) == (1, 30)
    assert report.problems[0].line == 2


def test_a_header_in_another_encoding_is_that_and_no_unknown_columns(write: Write) -> None:
    path = write("a.csv", "вопрос;ответ\nКак дела?;Хорошо\n".encode("cp1251"))
    with pytest.raises(DataError, match=r'a\.csv:1: .*"вопрос;ответ"\), so set data\.encoding=windows-1251'):
        train_rows(path)


def test_one_line_of_another_encoding_does_not_condemn_the_file(write: Write) -> None:
    lines = [f"Вопрос {n},Ответ\n".encode() for n in range(9)]
    lines[4] = "Здравствуйте,Привет\n".encode("cp1251")
    [problem] = train_rows(write("a.csv", b"question,answer\n" + b"".join(lines))).problems
    assert problem.line == 6
    assert "while other lines are" in problem.message
    assert '"Здравствуйте,Привет" in windows-1251' in problem.message
    assert "data.encoding" not in problem.message


def test_a_byte_that_the_stated_encoding_does_not_have_is_named_by_line(write: Write) -> None:
    content = "question,answer\nВопрос,Ответ\nЕщё".encode("cp1251") + b"\x98,A\n"
    [problem] = train_rows(write("a.csv", content), encoding="windows-1251").problems
    assert problem.line == 3
    assert "byte 0x98 at position 4 of the line is not windows-1251" in problem.message
    half = "question,answer\n返品,A\n".encode("shift_jis") + b"\x95\n"
    [problem] = train_rows(write("b.csv", half), encoding="shift_jis").problems
    assert problem.line == 3


@pytest.mark.parametrize("encoding", ["windows-1251", "latin-1", "gb18030", "utf-16", "utf-16-le"])
def test_utf8_is_not_read_as_something_else(write: Write, encoding: str) -> None:
    path = write("a.csv", as_csv(RUSSIAN))
    if encoding == "utf-16-le":
        with pytest.raises(DataError):
            train_rows(path, encoding=encoding).require_valid()
    else:
        with pytest.raises(DataError, match=r"UTF-8 text, which data\.encoding|no byte order mark"):
            train_rows(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", FORMS)
def test_a_byte_order_mark_says_the_form_without_being_asked(write: Write, name: str, encoding: str) -> None:
    path = write(name, ("\ufeff" + FORMS[name](RUSSIAN)).encode(encoding))
    for options in ({}, {"encoding": encoding}, {"encoding": encoding[:6]}):
        rows = train_rows(path, **options)
        assert pairs(rows) == rows_of(RUSSIAN)
        assert not rows.problems
    with pytest.raises(DataError, match=r"is UTF-(16|32) text \(it begins with .*\): leave data\.encoding out"):
        train_rows(path, encoding="windows-1251")


def test_bytes_that_the_mark_does_not_allow_are_named(write: Write) -> None:
    content = ("\ufeff" + as_csv(RUSSIAN)).encode("utf-16-le") + b"\x00\xdc\n\0"
    [problem] = train_rows(write("a.csv", content)).problems
    assert problem.line == 4
    assert "is not utf-16, which the file's byte order mark says it is" in problem.message
    assert "data.encoding" not in problem.message


def test_two_zero_bytes_do_not_make_utf16(write: Write) -> None:
    rows = train_rows(write("a.jsonl", '{"question": "x\0\0y", "answer": "A"}\n{"question": "Q", "answer": "A"}\n'))
    assert len(rows) == 1
    assert "NUL" in rows.problems[0].message


@pytest.mark.parametrize("name", ["rot13", "base64", "nonsense", "", "unicode_escape", "a\0b"])
def test_what_is_not_an_encoding_of_text_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a character encoding"):
        DataConfig(train_file="a.csv", encoding=name)


def test_the_demo_is_read_whatever_the_encoding_of_other_files() -> None:
    assert len(train_rows("demo", encoding="cp1251"))
