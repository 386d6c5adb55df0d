"""Damaged files of every format: whatever is done to them, reading ends with rows or with one line."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.hypotheses import QUICK

from lorahydra.config.schema import DataConfig
from lorahydra.data.ingest import Rows
from lorahydra.data.loading import read_sources
from lorahydra.errors import LorahydraError

ROWS = [{"question": f'Вопрос {n}: "да", нет;\tили | и\nещё?', "answer": f"Réponse {n} 😀"} for n in range(8)]
DOCUMENTS = [
    {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
    for r in ROWS
]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n") -> bytes:
    import csv

    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=end)
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return sink.getvalue().encode()


def as_lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


FILES: dict[str, bytes] = {
    "lines.jsonl": as_lines(ROWS),
    "cr.jsonl": as_lines(ROWS, "\r"),
    "turns.jsonl": as_lines(DOCUMENTS),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "object.json": json.dumps({"data": ROWS}).encode(),
    "split.json": json.dumps({"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}).encode(),
    "columns.json": json.dumps({c: {str(n): row[c] for n, row in enumerate(ROWS)} for c in ROWS[0]}).encode(),
    "comma.csv": as_csv(ROWS),
    "cr.csv": as_csv(ROWS, end="\r"),
    "tab.tsv": as_csv(ROWS, "\t", "\n"),
    "excel.csv": b"\xef\xbb\xbfsep=;\r\n" + as_csv(ROWS, ";"),
    "rows.parquet": as_parquet(ROWS),
    "turns.parquet": as_parquet(DOCUMENTS),
}


@pytest.fixture(scope="module", autouse=True)
def _own_folder() -> Iterator[None]:
    """Not of one test: hypothesis runs many examples in one."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def read(name: str, content: bytes) -> Rows:
    Path(name).write_bytes(content)
    with tempfile.TemporaryDirectory() as cache:
        return read_sources(DataConfig(train_file=name), Path(cache))["train"].parts[0]


@contextmanager
def at_most_one_line(name: str = "") -> Iterator[None]:
    """Let errors pass that say the name in one line and end a command with exit code 2."""
    error: LorahydraError | None = None
    try:
        yield
    except LorahydraError as raised:
        error = raised
    if error is not None:
        assert "\n" not in str(error)
        assert name in str(error)
        assert error.exit_code == 2


def ends_well(name: str, content: bytes) -> None:
    """Rows and problems, or one line; anything else fails the test."""
    with at_most_one_line(name):
        rows = read(name, content)
        assert all("\n" not in str(problem) for problem in rows.problems)


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bytes flipped, cut off, put in, left out or repeated, at a few places."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(changed)))
        piece = draw(st.binary(min_size=1, max_size=6) | st.sampled_from(PIECES))
        end = min(len(changed), place + draw(st.integers(0, 40)))
        how: Callable[[], Any] = draw(
            st.sampled_from(
                [
                    lambda place=place, piece=piece: changed.__setitem__(slice(place, place + len(piece)), piece),
                    lambda place=place, piece=piece: changed.__setitem__(slice(place, place), piece),
                    lambda place=place, end=end: changed.__delitem__(slice(place, end)),
                    lambda place=place: changed.__delitem__(slice(place, None)),
                    lambda place=place, end=end: changed.extend(changed[place:end]),
                ]
            )
        )
        how()
    return bytes(changed)


PIECES = [
    b"\0",
    b'"',
    b"\r",
    b"\n",
    b",",
    b"{",
    b"[" * 2000,
    b"}",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\\ud800",
    b"9" * 5000,
    b"NaN",
    b"\xe9",
]


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_gives_its_rows(name: str) -> None:
    rows = read(name, FILES[name])
    assert not rows.problems
    contents = [[message.content for message in rows.example(n).messages] for n in range(len(rows))]
    assert contents == [list(row.values()) for row in ROWS]


@pytest.mark.parametrize("name", FILES)
@QUICK
@given(data=st.data())
def test_a_damaged_file_ends_with_rows_or_one_line(name: str, data: st.DataObject) -> None:
    ends_well(name, data.draw(damage(FILES[name])))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*ROWS[0], "messages", "role", "content", "data", "0"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(QUICK, max_examples=100)
@given(value=JSON, name=st.sampled_from(["a.json", "a.jsonl"]))
def test_any_json_ends_with_rows_or_one_line(value: object, name: str) -> None:
    ends_well(name, json.dumps(value).encode("utf-8", "surrogatepass"))


@settings(QUICK, max_examples=100)
@given(text=st.text(st.sampled_from('ab,;|"\r\n\t \0\ufeffя'), max_size=40), name=st.sampled_from(["a.csv", "a.tsv"]))
def test_any_table_ends_with_rows_or_one_line(text: str, name: str) -> None:
    ends_well(name, b"question,answer\n" + text.encode())


TYPES = [
    pa.array([1, None]),
    pa.array([1.5, float("nan")]),
    pa.array([True, None]),
    pa.nulls(2),
    pa.array([b"\xff", b"a"]),
    pa.array(["1.5", None]).cast(pa.decimal128(5, 2)),
    pa.array([0, 1]).cast(pa.timestamp("ns", "UTC")),
    pa.array([1, 2]).cast(pa.duration("ns")),
    pa.array([0, 1], pa.int32()).cast(pa.date32()),
    pa.array([1, 2]).cast(pa.time64("ns")),
    pa.array(["a", "a"]).dictionary_encode(),
    pa.array(["a", None], pa.large_string()),
    pa.array(["a", "b"], pa.string_view()),
    pa.array([["a"], None]),
    pa.array([["a"], []], pa.large_list(pa.string())),
    pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
    pa.array([{"role": "user"}, None]),
    pa.array([[("a", "b")], []], pa.map_(pa.string(), pa.string())),
    pa.array([b"0" * 16, None], pa.binary(16)),
    pa.array([1.5, 2], pa.float16()),
    pa.array(["a", "b"], pa.large_string()),
]


@settings(QUICK, max_examples=60)
@given(question=st.sampled_from(TYPES), answer=st.sampled_from(TYPES), twice=st.booleans())
def test_any_type_of_column_ends_with_rows_or_one_line(question: Any, answer: Any, twice: bool) -> None:
    names = ["question", "answer", "answer" if twice else "other"]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([question, answer, answer], names=names), sink)
    ends_well("types.parquet", sink.getvalue())
