"""Answers with scores that people gave them: any file that can be read as a dataset, with a column for the score.

| column | or | holds |
|---|---|---|
| `score` | `human_score` | a person's overall score, on any numeric scale; rows without one are left out |
| `answer` | `prediction`, `response` | the answer |
| `prompt` | `question`, `instruction` | what was asked |
| `reference` | | a good answer |
| a criterion's name | | a person's score for it |
| `judge_score`, `judge_` and a criterion's name | | what a judge has given |
| `bertscore_f1` | | BERTScore F1 |
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lorahydra.config.schema import DataConfig
from lorahydra.data.ingest import objects
from lorahydra.data.messages import describe
from lorahydra.data.problems import Problems
from lorahydra.data.readers import HEADER_ROW, with_columns
from lorahydra.data.readers.text import UTF8
from lorahydra.data.sources import locate
from lorahydra.errors import DataError, one_line

__all__ = ["COLUMNS", "FEWEST", "MOST", "LabelledAnswer", "check_labels", "number", "read_labels"]

FEWEST = 10
"""With fewer labelled answers, an interval is so wide that nothing can be said."""
MOST = 1000
"""More do not fit into memory, and are not needed."""
COLUMNS = {
    "score": ("score", "human_score"),
    "answer": ("answer", "prediction", "response"),
    "prompt": ("prompt", "question", "instruction"),
    "reference": ("reference",),
    "judge_score": ("judge_score",),
    "bertscore_f1": ("bertscore_f1",),
}
"""What a column holds, and the names that it may have."""
REQUIRED = ("score", "answer")
JUDGE = "judge_"
"""Begins the name of a column with a judge's score for a criterion."""
NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer that a person has scored."""

    place: str
    """Where it was found, for messages: `line 7`."""
    score: float
    answer: str
    prompt: str = ""
    reference: str = ""
    judge_score: float | None = None
    """The judge's; None if it gave none."""
    bertscore_f1: float | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)
    """People's scores for criteria, by name."""
    judge_criteria: Mapping[str, float] = field(default_factory=dict)
    """The judge's."""


def read_labels(
    file: str, criteria: Collection[str] = (), *, columns: Mapping[str, str] | None = None, encoding: str = UTF8
) -> list[LabelledAnswer]:
    """Read and check a file of labelled answers, in its order.

    Args:
        file: JSONL, JSON, CSV or Parquet.
        criteria: Names of criteria, which columns may have. Columns `NAME` and `judge_NAME` belong to one as well.
        columns: Names of columns that the file has instead of those of `COLUMNS`.
        encoding: The encoding of its text.

    Raises:
        ConfigError: There is no such encoding.
        DataError: The file or one of its rows cannot be used, or there are too few labelled answers.
    """
    source = locate(DataConfig(train_file=file, encoding=encoding))["train"][0]
    known = {name for names in COLUMNS.values() for name in names}.union((columns or {}).values(), criteria)
    problems = Problems()
    found, _ = with_columns(objects(source.rows(known, problems), problems))
    _refuse(problems, file)
    if not found:
        raise DataError("has no rows", path=file)
    names = _names(found, columns or {}, file)
    rows = [(line, row) for line, row in objects(source.rows(found, problems), problems) if line != HEADER_ROW]
    pairs = {name for name in found if f"{JUDGE}{name}" in found}
    # The columns reason and judge_reason, for example, are not a criterion.
    pairs -= {name for name in pairs for _, row in rows if _has_words(row, name) and _has_words(row, f"{JUDGE}{name}")}
    scored = pairs.union(name for name in criteria if name in found) - set(names.values())
    labels = []
    for line, row in rows:
        try:
            if (label := _label(row, names, scored, f"line {line}")) is not None:
                labels.append(label)
        except _CellError as error:
            problems.add(line, str(error), field=error.column)
    _refuse(problems, file)
    check_labels(labels, file)
    return labels


def check_labels(labels: Sequence[LabelledAnswer], source: str) -> None:
    """Refuse labels of which nothing can be learned.

    Raises:
        DataError: There are too few or too many, all scores are equal, or an answer occurs twice.
    """
    if not FEWEST <= len(labels) <= MOST:
        limit = (
            f"at least {FEWEST} are needed, and 30 to 50 are good" if len(labels) < FEWEST else f"give {MOST} at most"
        )
        count = "1 answer has" if len(labels) == 1 else f"{len(labels)} answers have"
        raise DataError(f"{count} a person's score: {limit}", path=source)
    if len({label.score for label in labels}) == 1:
        raise DataError(f"all people's scores are {labels[0].score:g}: a ranking needs different ones", path=source)
    seen: dict[tuple[str, str], LabelledAnswer] = {}
    for label in labels:
        # Answers such as "4" may be equal by chance, which only their prompts can tell.
        first = seen.setdefault((label.prompt, label.answer), label) if label.prompt else label
        if first is not label:
            raise DataError(
                f"{label.place} repeats the answer of {first.place}: keep one row for each answer, with the mean of "
                "people's scores",
                path=source,
            )


def number(value: object) -> float | None:
    """A score as it is written; None if there is none.

    Raises:
        ValueError: It is not a finite number; the message is for the user.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool | int | float):
        score = _float(value)
    elif isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        score = float(value.strip().replace(",", "."))
    else:
        shown = f"'{one_line(value, 40)}'" if isinstance(value, str) else describe(value)
        raise ValueError(f"holds {shown} where a number is expected")
    if not math.isfinite(score):
        raise ValueError(f"holds {score} where a number is expected")
    return score


def _float(value: float) -> float:
    """The number as a float; infinite if it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


class _CellError(Exception):
    """A value cannot be used."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


def _refuse(problems: Problems, file: str) -> None:
    if problems.total:
        first = problems.first[0]
        raise DataError(first.message, path=file, line=first.line, field=first.field)


def _names(found: Collection[str], mapping: Mapping[str, str], file: str) -> dict[str, str]:
    """The column for each of the `COLUMNS` that the file has."""
    names = {}
    for meaning, usual in COLUMNS.items():
        given = mapping.get(meaning)
        present = [name for name in ([given] if given else usual) if name in found]
        if len(present) > 1:
            raise DataError(
                f"{' and '.join(present)} could both be the {meaning}: name one with --columns {meaning}={present[-1]}",
                path=file,
            )
        if present:
            names[meaning] = present[0]
        elif given or meaning in REQUIRED:
            wanted = given or " or ".join(usual)
            shown = one_line(", ".join(sorted(found))) or "none"
            raise DataError(
                f"there is no column {wanted} (columns: {shown}): name it with --columns {meaning}=COLUMN", path=file
            )
    return names


def _label(
    row: Mapping[str, object], names: Mapping[str, str], criteria: Iterable[str], place: str
) -> LabelledAnswer | None:
    """The labelled answer in a row; None if nobody has scored it."""

    def value(name: str) -> float | None:
        return _number(row, names[name]) if name in names else None

    def text(name: str) -> str:
        return _text(row, names[name]) if name in names else ""

    score = value("score")
    if score is None:
        return None
    return LabelledAnswer(
        place=place,
        score=score,
        answer=text("answer"),
        prompt=text("prompt"),
        reference=text("reference"),
        judge_score=value("judge_score"),
        bertscore_f1=value("bertscore_f1"),
        criteria={name: given for name in criteria if (given := _number(row, name)) is not None},
        judge_criteria={name: given for name in criteria if (given := _number(row, f"{JUDGE}{name}")) is not None},
    )


def _has_words(row: Mapping[str, object], column: str) -> bool:
    try:
        number(row.get(column))
    except ValueError:
        return True
    return False


def _number(row: Mapping[str, object], column: str) -> float | None:
    try:
        return number(row.get(column))
    except ValueError as error:
        raise _CellError(str(error), column) from error


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _CellError(f"holds {describe(value)} where text is expected", column)
    return value
