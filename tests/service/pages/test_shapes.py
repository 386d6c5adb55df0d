"""Values as people read them, in both languages; text from elsewhere without terminal commands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from lorahydra.service.pages.shapes import Shapes, plain
from lorahydra.service.pages.words import Words

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
EN, RU = Words("en"), Words("ru")


def test_durations() -> None:
    texts = [Shapes(EN).duration(s) for s in (None, 0, 5, 60, 95, 599, 605, 3599, 3600, 3900, 86400, 90000, 200000)]
    assert texts == [
        "–", "0 s", "5 s", "1 min", "1 min 35 s", "9 min 59 s", "10 min", "60 min", "1 h", "1 h 5 min", "1 day",
        "1 day 1 h", "2 days 7 h",
    ]  # fmt: skip
    assert Shapes(RU).duration(90000) == "1 день 1 ч"


def test_other_values() -> None:
    english, russian = Shapes(EN), Shapes(RU)
    assert (english.score(0.71094), russian.score(0.71094), english.score(None)) == ("0.7109", "0,7109", "–")
    assert (english.gain(0.1), english.gain(-0.1)) == ("+0.1000", "−0.1000")
    assert (english.money(0), english.money(0.001), english.money(1234.5)) == ("$0.00", "less than $0.01", "$1,234.50")
    assert russian.money(1234.5) == "1234,50 $"
    assert [english.size(n) for n in (0, 1023, 2048, 5 << 20, 3 << 40)] == [
        "0 B", "1,023 B", "2.0 KiB", "5.0 MiB", "3,072 GiB",
    ]  # fmt: skip
    assert (english.probability(0.625), russian.probability(0.2), english.probability(None)) == ("0.62", "0,20", "–")
    assert (english.megabytes(1_843_200), russian.megabytes(1_843_200)) == ("1.84 MB", "1,84 МБ")
    assert english.moment(NOW) == "January 2, 2026, 12:00 UTC"
    assert russian.moment(NOW.astimezone(timezone(timedelta(hours=14)))) == "2 января 2026 г., 12:00 UTC"
    assert [russian.value(value) for value in (0.00025, 2.5e-5, 16, "all")] == ["0,00025", "2,5e-05", "16", "all"]
    assert english.value(0.00025) == "0.00025"
    assert russian.score(12345.5) == "12\N{NARROW NO-BREAK SPACE}345,5000"
    assert [english.tick(value) for value in (0.5, 0.25, 1.0, 0)] == ["0.5", "0.25", "1", "0"]
    assert english.link("javascript:alert(1)") is None
    assert english.link("http://127.0.0.1:5000/#/x") is not None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("10%\r50%\r100%\nnext\r\n", "100%\nnext\n"),
        ("a\x00b\x08c\x9bd", "abcd"),
        ("\u202eevil\u2066", "evil"),
        ("tab\tstays", "tab\tstays"),
        ("─ русский 🙂", "─ русский 🙂"),
    ],
)
def test_terminal_commands_are_taken_out(given: str, shown: str) -> None:
    assert plain(given) == shown
