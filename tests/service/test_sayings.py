"""What the program says in English is known to the page, and said in the reader's language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorahydra
from lorahydra.data.readers.encodings import NOT_TEXT
from lorahydra.judges.base import Fault
from lorahydra.service.pages.words import Words, messages
from lorahydra.service.sayings import sayings
from lorahydra.utils.files import REASONS

PACKAGE = Path(lorahydra.__file__).parent
RU = Words("ru")
SOURCES = (
    *(
        "data",
        "evaluation/evaluate.py",
        "metrics",
        "training",
        "judges/builtin",
        "judges/running.py",
        "judges/limits.py",
    ),
    *("judges/cache.py", "judges/http.py", "judges/selftest.py", "judges/session.py", "utils/files.py"),
    *(f"modeling/{name}.py" for name in ("base", "devices", "generation", "hub", "model_files", "packaged")),
    *(f"modeling/{name}.py" for name in ("pretrained", "quantization", "targets", "vocabulary")),
    *(f"sweep/{name}.py" for name in ("experiment_objective", "objective", "running_trial", "storage", "study_spec")),
    *(f"sweep/{name}.py" for name in ("study_store", "study_sweeper", "winner", "workers")),
    *(f"sweep/{name}.py" for name in ("placing", "submitit_jobs", "worker_job")),
    *("trial/racing.py", "tracking/store.py", "tracking/database.py", "tracking/models.py"),
    *(f"service/{name}.py" for name in ("checking", "choices", "datasets", "jobs", "limits", "planning", "projects")),
    *(f"service/{name}.py" for name in ("answering", "deletions", "results", "rows", "supervisor", "uploads")),
    "inference/adapted_model.py",
)
"""What a check of data or a study may end with, and what a page may show of the service."""
OF_COMMANDS = ("labels.py",)
"""Files of the data package that only commands use."""
IN_PARTS = (
    *(
        "judge {}: {}{}",
        "{}: {}",
        "{} ({})",
        "there is no {} {}",
        "{} {} running: cancel first, then delete",
        "{}, here {}",
        "{}, for example data.columns.question=q",
    ),
    *("no trial of the study was completed, so there is no winner{}", "{}: columns not used: {}"),
    *(
        "{}: {} of {} rows are left out: {} {} tokens",
        "{} has {} row{}, too few {}: scores will differ by chance; add rows{}",
    ),
)
"""What is made of parts that say different things; the sayings have each of them whole."""
SAMPLE = "no connection"
"""Stands for whatever varies: it is a saying itself."""


FOREIGN = (
    "JSONDecodeError",
    "ValueError",
    "OnlyAloneError",
    "NotRecordableError",
    "RuntimeError",
    "AttributeError",
    "TypeError",
)
"""Errors that are no message for people."""


def said_in(source: Path) -> Iterator[str]:
    """The messages of all errors and problems that a file makes, with `{}` for what varies."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Yield) and node.value is not None and (text := template(node.value)):
            yield text  # a warning
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        ours = name.endswith(("Error", "Refusal")) and name not in FOREIGN
        message = node.args[1] if name == "add" and len(node.args) > 1 else node.args[0]
        if (ours or name in ("add", "append")) and " " in template(message) and (text := template(message)):
            yield text


def template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def test_all_that_the_program_may_say_is_known() -> None:
    files = [
        file
        for name in SOURCES
        for file in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).rglob("*.py"))
        if file.name not in OF_COMMANDS
    ]
    found = {text for file in files for text in said_in(file)} - set(IN_PARTS)
    found |= {*NOT_TEXT.values(), *Fault, *REASONS.values()}
    assert len(found) > 200
    unknown = [text for text in found if not cyrillic(RU.said(text.replace("{}", SAMPLE)))]
    assert unknown == [], "say it in messages/en.json as the code does, and in messages/ru.json in Russian"


def cyrillic(text: str | None) -> bool:
    return re.search("[а-я]", text or "") is not None


def test_what_varies_is_apart() -> None:
    for saying in sayings(messages("en")):
        assert all(saying.texts[1:-1]), saying.key
        assert len(set(saying.names)) == len(saying.names), saying.key
        assert not {"key", "self"} & set(saying.names) or saying.names, saying.key


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rows.jsonl:41: field 'answer': is empty", "rows.jsonl:41: поле «answer»: пустое"),
        ("holds the number 5 where text is expected", "содержит число 5, а ожидается текст"),
        (
            "a.jsonl line 41 field answer: holds text where a list of messages is expected (and 2 more)",
            "a.jsonl, строка 41, поле answer: содержит текст, а ожидается список (messages) (и ещё 2)",
        ),
        ("judge gemini is unavailable: no connection: refused", "судья gemini недоступен: нет соединения: refused"),
        (
            "judge gemini is unavailable: no connection: [Errno 111] Connection refused (http://127.0.0.1:9)",
            "судья gemini недоступен: нет соединения: в соединении отказано (http://127.0.0.1:9)",
        ),
        ("cannot write to /srv/x: the disk is full", "не удаётся записать в /srv/x: диск заполнен"),
        (
            "5 of 8 trials of study x failed, more than hydra.sweeper.max_failure_rate=0.5 allows; the last one: "
            "TrainingError: training stopped at step 3: loss is nan; try a lower training.learning_rate",
            "с ошибкой завершились испытания: 5 из 8 – больше, чем допускает hydra.sweeper.max_failure_rate=0.5; "
            "последнее: обучение остановлено на шаге 3: loss = nan; нужна меньшая training.learning_rate",
        ),
        ("test: 3 of 9 rows are duplicates", "тестовая часть: повторяются 3 из 9 строк"),
        ("broken JSON at column 7: Expecting value", "ошибка в JSON, позиция 7: ожидается значение"),
        ("something else", None),
        ("x: " * 300, None),
        ("a: field 'b': " * 70, None),
        ("{rows} {0} %s", None),
    ],
)
def test_lines_are_said_in_russian(line: str, said: str | None) -> None:
    assert RU.said(line) == said
    assert Words("en").said(line) is None
