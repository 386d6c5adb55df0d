"""Words of the page: both languages say everything, in the right plural; what browsers ask for is chosen."""

from __future__ import annotations

import re
import string
from importlib import resources

import pytest

from lorahydra.names import State
from lorahydra.service.pages.words import Words, chosen_language, messages
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState

EN, RU = Words("en"), Words("ru")


def test_both_languages_say_everything() -> None:
    first, second = messages("en"), messages("ru")
    assert set(first) == set(second)
    for key, message in first.items():
        other = second[key]
        assert isinstance(message, str) == isinstance(other, str), key
        if key.startswith("said.") and isinstance(message, str):
            assert fields(str(other)) <= fields(message), key  # not all that the program says helps on the page
        elif isinstance(message, str):
            assert fields(message) == fields(str(other)), key
        else:
            assert set(message) == {"one", "other"}, key
            assert isinstance(other, dict)
            assert set(other) == {"one", "few", "many"}, key
            wanted = fields(message["other"])
            assert all(fields(form) == wanted for form in (*message.values(), *other.values())), key


def fields(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def test_templates_and_code_name_messages_that_there_are() -> None:
    package = resources.files("lorahydra.service.pages")
    sources = [*(package / "templates").iterdir(), *(f for f in package.iterdir() if f.name.endswith(".py"))]
    used: set[str] = set()
    for source in sources:
        text = source.read_text(encoding="utf-8")
        used |= set(re.findall(r"""\b(?:t|words|_words)\(\s*['"]([a-z0-9_.]+)['"][,)]""", text))
        used |= set(re.findall(r"""\{\{ t\('[a-z.]+'[^}]* else t\('([a-z.]+)'""", text))
    assert len(used) > 150
    assert used <= set(EN._messages)
    for state in JobState:
        assert f"state.{state}" in EN
        assert f"study.{state}" in EN
    assert all(f"trial.{state}" in EN for state in State if state.value != "stopped")


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "0 строк"), (1, "1 строка"), (2, "2 строки"), (4, "4 строки"), (5, "5 строк"), (11, "11 строк"),
        (12, "12 строк"), (14, "14 строк"), (21, "21 строка"), (22, "22 строки"), (25, "25 строк"), (101, "101 строка"),
        (111, "111 строк"), (1234, "1234 строки"), (12345, "12\N{NARROW NO-BREAK SPACE}345 строк"),
    ],
)  # fmt: skip
def test_russian_plurals(n: int, said: str) -> None:
    assert RU("unit.rows", n=n) == said


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, None, "en"),
        (None, "ru-RU,ru;q=0.9,en;q=0.8", "ru"),
        (None, "en;q=0.5, ru;q=0.7", "ru"),
        (None, "de, fr;q=0.9", "en"),
        (None, "de, ru;q=0.1", "ru"),
        (None, "ru;q=0, en;q=0.1", "en"),
        (None, "ru;q=x", "en"),
        (None, ";;;,,=" * 999, "en"),
        ("ru", "en", "ru"),
        ("en", "ru", "en"),
        ("xx", "ru", "ru"),
    ],
)
def test_the_language_is_chosen(cookie: str | None, accepted: str | None, language: str) -> None:
    assert chosen_language(cookie, accepted) == language


def test_what_the_service_says_most_is_translated(service: Service) -> None:
    lines = [judge.missing for judge in service.choices.judges() if judge.missing]
    lines += [service.jobs.estimate(None, FineTuneParams(False, None, model)).basis for model in ("tiny", "some/model")]
    assert len(lines) >= 5
    for line in lines:
        assert EN.said(line) is None  # it is shown as it is
        assert re.search("[а-я]", RU.said(line) or ""), line
    assert RU.said("something else") is None
