"""An example of a file to train on: questions with short answers in the reader's language."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from itertools import product

__all__ = ["example_file"]

CAPITALS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "Argentina": "Buenos Aires", "Austria": "Vienna", "Belgium": "Brussels", "Bulgaria": "Sofia",
        "Chile": "Santiago", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki",
        "France": "Paris", "Germany": "Berlin",
        "Greece": "Athens", "Hungary": "Budapest", "Iceland": "Reykjavik", "India": "New Delhi",
        "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Latvia": "Riga", "Norway": "Oslo",
        "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Romania": "Bucharest", "Spain": "Madrid",
        "Sweden": "Stockholm", "Thailand": "Bangkok", "Turkey": "Ankara", "Uruguay": "Montevideo",
    },
    "ru": {
        "Австрия": "Вена", "Аргентина": "Буэнос-Айрес", "Бельгия": "Брюссель", "Болгария": "София",
        "Венгрия": "Будапешт", "Германия": "Берлин", "Греция": "Афины", "Дания": "Копенгаген", "Египет": "Каир",
        "Индия": "Нью-Дели", "Ирландия": "Дублин", "Исландия": "Рейкьявик", "Испания": "Мадрид", "Италия": "Рим",
        "Кения": "Найроби", "Куба": "Гавана", "Латвия": "Рига", "Норвегия": "Осло", "Перу": "Лима",
        "Польша": "Варшава", "Португалия": "Лиссабон", "Румыния": "Бухарест", "Таиланд": "Бангкок",
        "Турция": "Анкара", "Уругвай": "Монтевидео", "Финляндия": "Хельсинки", "Франция": "Париж", "Чили": "Сантьяго",
        "Швеция": "Стокгольм", "Япония": "Токио",
    },
}  # fmt: skip
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "en": ("What is the capital of {}?", "{}: which city is its capital?", "Name the capital. Country: {}."),
    "ru": (
        "Какой город — столица? Страна: {}.",
        "{}: назовите столицу.",
        "Страна: {}. Назовите её столицу.",
    ),
}
ANSWER: Mapping[str, str] = {"en": "The capital is {}.", "ru": "Столица — {}."}


def example_file(language: str) -> bytes:
    """A CSV file of 90 rows in UTF-8, with the mark by which spreadsheets know that."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("question", "answer"))
    for question, (country, capital) in product(QUESTIONS[language], CAPITALS[language].items()):
        writer.writerow((question.format(country), ANSWER[language].format(capital)))
    return text.getvalue().encode("utf-8-sig")
