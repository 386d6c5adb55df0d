"""Personal data and secrets are found and counted, and what they are is written nowhere.

The planted values are made up. They are put together when the test runs, so that the repository holds none of them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.data.conftest import Write, qa

from lorahydra.cli.data import data
from lorahydra.config.changes import SCORE_NEUTRAL_KEYS
from lorahydra.config.compose import compose
from lorahydra.config.schema import DataConfig
from lorahydra.data import check, load_splits
from lorahydra.data.personal.check_digits import is_card, is_iban, is_inn, is_snils
from lorahydra.data.personal.detectors import LABELS, Kind, find
from lorahydra.errors import DataError
from lorahydra.service.pages.words import Words

AT = "@"
RANDOM = "a8Kf3mQz7Lw2Xp9Rt4Vb6Nc1Yd5Hg0JsUeTiOq"
HEX = "9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c"

PLANTED: list[tuple[Kind, str, str]] = [
    (Kind.EMAIL, "Write to {} about the invoice.", f"anna.petrova{AT}mail.ru"),
    (Kind.EMAIL, "My address is <{}>", f"j.o'hara{AT}acme-corp.co.uk".replace("'", "")),
    (Kind.EMAIL, "Пишите на {}, отвечу быстро", f"иванов{AT}почта.рф"),
    (Kind.EMAIL, "mailto:{}?subject=hi", f"Sales+EU{AT}firm.io"),
    (Kind.EMAIL, "reach me at {} please", "maria [at] gmail [dot] com"),
    (Kind.PHONE, "Call me on {} after six.", "+1 415 " + "555 2671"),
    (Kind.PHONE, "Our office: {}", "+49 (30) 9018" + "20-14"),
    (Kind.PHONE, "Мой номер {}, звоните", "+7 (916) 123" + "-45-67"),
    (Kind.PHONE, "Телефон: {}", "8 (495) 765" + "-43-21"),
    (Kind.PHONE, "перезвоните на {}", "8916" + "7654321"),
    (Kind.PHONE, "phone {}", "(212) 664" + "-7665"),
    (Kind.PHONE, "Номер в Минске {}", "+375 29 " + "123-45-67"),
    (Kind.PHONE, "тел. {}, спросить Олега", "765-43" + "-21"),
    (Kind.CARD, "Card {} exp 11/29", "4111 1111 " + "1111 1111"),
    (Kind.CARD, "карта {} Мир", "22001234" + "56789019"),
    (Kind.CARD, "pay with {}, cvv later", "5555-5555-" + "5555-4444"),
    (Kind.CARD, "Amex {} is declined", "3782 822463 " + "10005"),
    (Kind.INN, "ИНН {} указан в договоре", "77070" + "83893"),
    (Kind.INN, "ИНН физлица: {}", "500100" + "732259"),
    (Kind.INN, "Реквизиты: {} в строке 5", "500100" + "732259"),
    (Kind.SNILS, "СНИЛС {}", "112-233-" + "445 95"),
    (Kind.SNILS, "номер снилс — {}", "11223" + "344595"),
    (Kind.IBAN, "Transfer to {} today", "DE89 3704 0044 " + "0532 0130 00"),
    (Kind.IBAN, "IBAN: {} BANK", "GB82WEST1234" + "5698765432"),
    (Kind.API_KEY, "aws_access_key_id = {}", "AKIA" + "QZ7XK2MNB4RT9WLP"),
    (Kind.API_KEY, "git clone with {} fails", "ghp_" + RANDOM[:36]),
    (Kind.API_KEY, "use {} for CI", "github_pat_" + RANDOM + "_" + RANDOM[:20]),
    (Kind.API_KEY, "client = OpenAI(api_key='{}')", "sk-" + "proj-" + RANDOM),
    (Kind.API_KEY, "maps key: {}", "AIza" + RANDOM[:35]),
    (Kind.API_KEY, "bot {} posts", "xoxb-" + "1234567890-" + RANDOM[:24]),
    (Kind.API_KEY, "login with {}", "hf_" + RANDOM[:34]),
    (Kind.API_KEY, "Stripe: {}", "sk_" + "live_" + RANDOM[:24]),
    (Kind.PRIVATE_KEY, "{}\nMIIEow…", "-----BEGIN RSA " + "PRIVATE KEY-----"),
    (Kind.PRIVATE_KEY, "{}", "-----BEGIN OPENSSH " + "PRIVATE KEY-----"),
    (Kind.JWT, "Cookie: {}", "eyJ" + RANDOM[:17] + ".eyJ" + RANDOM[:24] + "." + RANDOM[:30]),
    (Kind.PASSWORD, "DATABASE_URL={}/app", "postgresql://app:" + "Tr0ub4dor" + AT + "db.internal:5432"),
    (Kind.PASSWORD, "password={}", "hunter" + "2!X"),
    (Kind.PASSWORD, "Пароль от почты: {}", "Zx9" + "qw7Lm!"),
    (Kind.PASSWORD, '{{"access_token": "{}"}}', HEX),
    (Kind.PASSWORD, "Authorization: Bearer {}", RANDOM),
]

ORDINARY = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips, then 1234567890 / 10 = 123456789.0, in all 1000000000000.",
    "The profit rose by +12 500 000 000 roubles; 3600-1200=2400 bottles are in the private cellar.",
    "3.14159265358979, 2.718281828459045 and 1e-10; 0.1234567890123456",
    "ISBN 978-3-16-148410-0 and 978-0-306-40615-7, ISSN 2049-3630, DOI 10.1000/182",
    "On 2024-01-15T10:30:00Z version 1.22.333-rc.4 of numpy==1.26.4 came out; build 20240115103000.",
    "Write to someone@example.com, info@shop.example or root@localhost, or clone git@github.com:org/repo.git",
    "logo@2x.png, user@host, @decorator, lodash@4.17.21, a @ b, 5 @ $3.99",
    "password = os.environ['PASSWORD'], token=tokenizer.eos_token_id, the secret: practice every day",
    "Max tokens: 4096, token count is 128000, key: value, api_key=YOUR_API_KEY_HERE1, password=********",
    "https://user:password@example.com/, postgres://$USER:${PASSWORD}@db/x, http://localhost:8080/a@b",
    "Заказ 1234567890 от 12.05.2023, сумма 1 234 567 890,00 руб., артикул 4607001234567",
    "The model has 8 030 261 248 parameters; 1111 2222 3333 4444 is a made-up pattern; 192.168.100.200:5432",
    "uuid 123e4567-e89b-12d3-a456-426614174000, sha256 " + HEX * 2,
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13; 10-20-30-40; 100 200 300 400 500 600",
    "risk-averse, task-oriented-and-well-organised-work, sk-learn, whisky-and-soda",
]


@pytest.mark.parametrize(("kind", "text", "value"), PLANTED, ids=range(len(PLANTED)))
def test_each_planted_value_is_found_once(kind: Kind, text: str, value: str) -> None:
    assert find(text.format(value)) == {kind: 1}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_holds_none(text: str) -> None:
    assert find(text) == {}


def test_what_belongs_to_two_kinds_counts_once_and_several_values_count_each() -> None:
    secret = "ghp_" + RANDOM[:36]
    assert find(f"token={secret}") == {Kind.API_KEY: 1}
    assert find(f"a.b{AT}mail.ru, c.d{AT}mail.ru; https://u:S3cretWord{AT}mail.ru") == {Kind.EMAIL: 2, Kind.PASSWORD: 1}


@pytest.mark.parametrize(
    ("is_valid", "number"),
    [
        (is_card, "4111111111111111"),
        (is_inn, "7707083893"),
        (is_inn, "500100732259"),
        (is_snils, "11223344595"),
        (is_iban, "DE89370400440532013000"),
    ],
)
def test_one_wrong_digit_makes_a_number_ordinary(is_valid: object, number: str) -> None:
    assert callable(is_valid)
    assert is_valid(number)
    for place in range(len(number) - 1, len(number) - 7, -1):
        wrong = str((int(number[place]) + 1) % 10)
        assert not is_valid(number[:place] + wrong + number[place + 1 :])


@pytest.fixture
def planted(write: Write) -> Path:
    rows = [{"question": text.format(value), "answer": f"It is {n}."} for n, (_, text, value) in enumerate(PLANTED)]
    return write("rows.jsonl", [*qa(60), *rows])


def test_the_check_finds_all_of_them_and_names_none(planted: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    result = CliRunner().invoke(data, ["check", str(planted), "--json"])
    assert result.exit_code == 0, result.output
    [source] = json.loads(result.output)["sources"]
    found = {entry["kind"]: entry for entry in source["personal_data"]}
    assert sum(entry["count"] for entry in found.values()) == len(PLANTED) == 40
    assert set(found) == set(Kind)
    assert found["email"] == {"kind": "email", "count": 5, "rows": 5, "lines": [61, 62, 63, 64, 65]}
    shown = CliRunner().invoke(data, ["check", str(planted)])
    assert (
        f"warning: {planted}: 5 of 100 rows hold e-mail addresses (first in lines 61, 62, 63, 64, 65)" in shown.output
    )
    everything = result.output + shown.output + caplog.text
    assert [value for _, _, value in PLANTED if value in everything] == []
    # What is kept in the cache of findings, unlike the rows themselves, holds no value either.
    kept = "".join(path.read_text("utf-8") for path in planted.parent.glob("cache/data/personal/*/facts.json"))
    assert "payment_card" in kept
    assert [value for _, _, value in PLANTED if value in kept] == []


def test_the_demo_data_hold_none() -> None:
    assert [source.personal_data for source in check(DataConfig(train_file="demo"), 0, chat=None).sources] == [[]] * 3


def test_data_with_any_may_be_refused(planted: Path) -> None:
    config = DataConfig(train_file=str(planted), pii="error")
    with pytest.raises(DataError) as caught:
        load_splits(config, 0)
    assert str(caught.value) == (
        f"{planted}:61: 5 of 100 rows hold e-mail addresses, which data.pii=error refuses: remove them, or set "
        "data.pii=warn (and 9 more; run `lorahydra data check` to list them)"
    )
    result = CliRunner().invoke(data, ["check", str(planted), "data.pii=error"])
    assert result.exit_code == 2
    assert f"{planted}:74: 4 of 100 rows hold payment card numbers, which data.pii=error refuses" in result.output


def test_every_load_warns_unless_it_is_switched_off(planted: Path) -> None:
    texts = {mode: load_splits(DataConfig(train_file=str(planted), pii=mode), 0).report for mode in ("warn", "off")}
    assert sum("the model may repeat them" in warning for warning in texts["warn"].warnings) == len(Kind)
    assert not any("the model may repeat them" in warning for warning in texts["off"].warnings)
    assert texts["off"].sources[0].personal_data == []
    assert compose(["data.pii=off"]).data.pii == "off"
    assert "data.pii" in SCORE_NEUTRAL_KEYS


def test_texts_are_looked_through_once_for_each_content(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_splits(DataConfig(train_file=str(planted)), 0).report.sources
    monkeypatch.setattr("lorahydra.data.personal.scanning.find", lambda _: pytest.fail("looked again"))
    copy = planted.with_name("copy.jsonl")
    copy.write_bytes(planted.read_bytes())
    assert load_splits(DataConfig(train_file=str(copy)), 1).report.sources[0].personal_data == first[0].personal_data


def test_calls_of_tools_are_looked_through_too(write: Write) -> None:
    call = {"name": "mail", "arguments": {"to": f"anna{AT}mail.ru"}}
    turns = [
        {"role": "user", "content": "Mail her"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    tools = [{"name": "mail", "description": f"asks boss{AT}mail.ru"}]
    path = write("a.jsonl", [{"messages": turns, "tools": tools}, *({"messages": turns, "n": n} for n in range(9))])
    [found] = check(DataConfig(train_file=str(path)), 0, chat=None).sources[0].personal_data
    assert (found.kind, found.count, found.rows) == ("email", 11, 10)


def test_the_page_says_each_kind_in_russian() -> None:
    russian = Words("ru")
    for kind, label in LABELS.items():
        said = russian.said(f"a.jsonl: 3 of 40 rows hold {label} (first in lines 1, 2): the model may repeat them")
        name = russian(f"said.kind.{kind}")
        assert said == f"a.jsonl: {name}, строк 3 из 40 (первые: 1, 2) – модель может их повторить"
        assert label == Words("en")(f"said.kind.{kind}")
