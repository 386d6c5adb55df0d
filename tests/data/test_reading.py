"""Reading text files: every way in which one can be broken is named with its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.conftest import Write

from lorahydra.data.problems import MAX_PROBLEMS, Fault, Problems
from lorahydra.data.readers import text
from lorahydra.data.readers.csv_files import read_csv
from lorahydra.data.readers.json_files import read_json, read_json_lines
from lorahydra.errors import DataError

READERS = {".jsonl": read_json_lines, ".json": read_json, ".csv": read_csv}


def read(path: Path, encoding: str = "utf-8") -> tuple[list[tuple[int, object]], Problems]:
    problems = Problems()
    return list(READERS[path.suffix](text.TextFile(path, encoding), problems)), problems


def only_problem(path: Path) -> str:
    _, problems = read(path)
    assert problems.total == 1
    return str(problems.first[0])


def test_json_lines_are_numbered_and_blank_ones_skipped(write: Write) -> None:
    rows, problems = read(write("a.jsonl", '{"a": 1}\n\n  \t\r\n{"a": "ü"}\r\n{"a": 3}'))
    assert rows == [(1, {"a": 1}), (4, {"a": "ü"}), (5, {"a": 3})]
    assert not problems.total


def test_utf8_mark_is_skipped(write: Write) -> None:
    for name, content in (("a.jsonl", '{"a": 1}\n'), ("a.json", '[{"a": 1}]'), ("a.csv", "a\n1\n")):
        rows, problems = read(write(name, b"\xef\xbb\xbf" + content.encode()))
        assert [list(row) for _, row in rows] == [["a"]], name  # type: ignore[call-overload]
        assert not problems.total


def test_marks_inside_joined_json_lines_and_any_line_end_are_read(write: Write) -> None:
    rows, problems = read(write("a.jsonl", '\ufeff\ufeff{"a": 1}\r\ufeff{"a": 2}\n{"a": "\ufeffx"}\r\n'))
    assert rows == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": "\ufeffx"})]
    assert not problems.total


def test_broken_line_seven_is_named_and_the_others_are_read(write: Write) -> None:
    lines = ['{"a": 1}'] * 10
    lines[6] = '{"a": 1,, "b": 2}'
    rows, problems = read(write("a.jsonl", "\n".join(lines)))
    assert len(rows) == 9
    assert [(p.line, p.message) for p in problems.first] == [
        (7, "broken JSON at column 9: Expecting property name enclosed in double quotes")
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' is repeated"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"a": "x\0y"}', "a NUL byte"),
        ('{"a": "cut', "Unterminated string"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ('{"a": ' + "9" * 5000 + "}", "broken JSON"),
    ],
)
def test_broken_json_is_explained(write: Write, line: str, expected: str) -> None:
    # A good line first: a file that begins with a bracket is read as an array.
    _, problems = read(write("a.jsonl", '{"a": 1}\n' + line + "\n"))
    assert problems.total == 1
    assert problems.first[0].line == 2
    assert expected in problems.first[0].message
    assert "\n" not in problems.first[0].message


def test_latin1_byte_is_named_with_line_and_position(write: Write) -> None:
    content = b'{"a": "ok"}\n' + '{"a": "café"}\n'.encode("latin-1")
    rows, problems = read(write("a.jsonl", content))
    assert rows == [(1, {"a": "ok"})]
    assert problems.counts == {Fault.UNDECODABLE: 1}
    assert problems.first[0].line == 2
    assert "byte 0xE9 at position 11 of the line is not UTF-8" in problems.first[0].message
    assert "iconv" in problems.first[0].message


@pytest.mark.parametrize("content", ['[{"a": "x"},\n{"a": "é"}]', '{"rows": [{"a": "x"},\n{"a": "é"}]}'])
def test_latin1_byte_in_a_json_document_is_named_too(write: Write, content: str) -> None:
    assert (
        only_problem(write("a.json", content.encode("latin-1")))
        .removeprefix("line 2: ")
        .startswith("byte 0xE9 at position 8")
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\x1f\x8b\x08\x00\x00", "gzip"),
        (b"PK\x03\x04....", "zip"),
        (b"PAR1....", ".parquet"),
        (b"", "the file is empty"),
    ],
)
@pytest.mark.parametrize("suffix", READERS)
def test_files_that_are_not_text_are_named_for_what_they_are(
    write: Write, start: bytes, expected: str, suffix: str
) -> None:
    path = write(f"a{suffix}", start)
    with pytest.raises(DataError, match=expected) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_of_white_space_has_no_rows(write: Write, suffix: str) -> None:
    assert read(write(f"a{suffix}", "\n \n\t\n")) == ([], Problems())


def test_a_line_without_end_does_not_fill_the_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MAX_LINE", 2**20)
    rows, problems = read(write("a.jsonl", b'{"a": 1}\n' + b"x" * (5 * 2**20) + b'\n{"a": 2}\n'))
    assert rows == [(1, {"a": 1}), (3, {"a": 2})]
    assert problems.first[0].line == 2
    assert "longer than 1 million characters" in problems.first[0].message


def test_problems_are_counted_beyond_those_kept(write: Write) -> None:
    _, problems = read(write("a.jsonl", '{"ok": 1}\n' + "{broken\n" * 50))
    assert problems.total == 50
    assert len(problems.first) == MAX_PROBLEMS


class TestJsonDocuments:
    def test_an_array_gives_the_lines_where_its_rows_begin(self, write: Write) -> None:
        rows, problems = read(write("a.json", json.dumps([{"a": 1}, {"a": [2, {"b": 3}]}], indent=1)))
        assert rows == [(2, {"a": 1}), (5, {"a": [2, {"b": 3}]})]
        assert not problems.total

    def test_an_array_larger_than_a_block_is_read_whole(self, write: Write) -> None:
        values = [{"a": "ü" * (n % 5000)} for n in range(1000)]
        rows, problems = read(write("a.json", json.dumps(values, ensure_ascii=False, indent=0)))
        assert [value for _, value in rows] == values
        assert [line for line, _ in rows] == [2 + 3 * n for n in range(1000)]
        assert not problems.total

    def test_an_array_under_a_jsonl_name_is_read(self, write: Write) -> None:
        assert read(write("a.jsonl", '[{"a": 1}, {"a": 2}]'))[0] == [(1, {"a": 1}), (1, {"a": 2})]

    def test_json_lines_under_a_json_name_are_read(self, write: Write) -> None:
        assert read(write("a.json", '{"a": 1}\n\n{"a": 2}\n'))[0] == [(1, {"a": 1}), (3, {"a": 2})]

    def test_the_one_list_of_an_object_is_the_rows(self, write: Write) -> None:
        path = write("a.json", '{"version": 1, "tags": ["x"], "data": [{"a": 1}, {"a": 2}]}')
        assert read(path)[0] == [(1, {"a": 1}), (2, {"a": 2})]

    def test_an_object_with_two_lists_is_refused(self, write: Write) -> None:
        with pytest.raises(DataError, match=r"several lists \(train, test\)"):
            read(write("a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}'))

    def test_a_single_conversation_is_a_row_not_a_list_of_rows(self, write: Write) -> None:
        row = {"messages": [{"role": "user", "content": "x"}]}
        assert read(write("a.json", json.dumps(row)))[0] == [(1, row)]

    def test_an_object_without_a_list_of_objects_is_a_row(self, write: Write) -> None:
        row = {"prompt": "P", "completion": "C", "tags": [], "scores": [1]}
        assert read(write("a.json", json.dumps(row)))[0] == [(1, row)]

    @pytest.mark.parametrize(
        "value",
        [
            {"columns": ["question", "answer"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]},
            {"columns": ["question", "answer"], "data": [["a", "b"], ["c", "d"]]},
            {"question": {"0": "a", "1": "c"}, "answer": {"0": "b", "1": "d"}},
            {"0": {"question": "a", "answer": "b"}, "1": {"question": "c", "answer": "d"}},
            {"question": ["a", "c"], "answer": ["b", "d"]},
            {"schema": {"fields": []}, "data": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]},
        ],
        ids=["split", "split without index", "columns", "index", "list", "table"],
    )
    def test_tables_of_pandas_are_read(self, write: Write, value: object) -> None:
        file = text.TextFile(write("a.json", json.dumps(value)))
        rows = list(read_json(file, Problems(), {"question", "answer"}))
        assert rows == [(1, {"question": "a", "answer": "b"}), (2, {"question": "c", "answer": "d"})]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"columns": ["a", "a"], "data": [["x", "y"]]}, "two columns named 'a'"),
            ({"columns": ["a", "b"], "data": [["x"]]}, "row 1 has 1 values where the table has 2 columns"),
            ({"a": {"0": "x"}, "b": {"1": "y"}}, "the columns of the table have different rows"),
            ({"a": ["x", "z"], "b": ["y"]}, r"different lengths \(a 2, b 1\)"),
        ],
    )
    def test_a_broken_table_is_refused(self, write: Write, value: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            list(read_json(text.TextFile(write("a.json", json.dumps(value))), Problems(), {"a", "b"}))

    def test_one_conversation_of_lists_is_not_a_table(self, write: Write) -> None:
        row = {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}
        file = text.TextFile(write("a.json", json.dumps(row)))
        assert list(read_json(file, Problems(), {"messages"})) == [(1, row)]

    def test_a_scalar_is_refused(self, write: Write) -> None:
        with pytest.raises(DataError, match="expected a JSON array or object, found '4'"):
            read(write("a.json", "42"))

    @pytest.mark.parametrize(
        ("content", "line", "message", "rows"),
        [
            ('[{"a": 1},\n{"a": }]', 2, "column 7: Expecting value", 1),
            ('[{"a": 1}\n{"a": 2}]', 2, "column 1: Expecting ',' or ']'", 1),
            ('[{"a": 1},\n]', 2, "Expecting value", 1),
            ('[{"a": 1},\n{"a": 2}', 2, "Expecting ',' or ']'", 2),
            ('[{"a": 1}]\n{"a": 2}', 2, "after the end of the array", 1),
            ('[{"a": 1}, {"b": NaN}]', 1, "NaN is not JSON", 1),
            ("[", 1, "Expecting value", 0),
            ('{"data": [{"a": 1},\n {"a" 2}]}', 2, "Expecting ':' delimiter", 0),
        ],
    )
    def test_a_broken_document_is_named_by_line(
        self, write: Write, content: str, line: int, message: str, rows: int
    ) -> None:
        records, problems = read(write("a.json", content))
        assert len(records) == rows
        assert [problem.line for problem in problems.first] == [line]
        assert message in problems.first[0].message

    def test_a_break_far_into_a_large_array_is_named_by_line(self, write: Write) -> None:
        lines = [json.dumps({"a": "x" * 900}) for _ in range(3000)]
        lines[2500] = '{"a": "x" "y"}'
        _, problems = read(write("a.json", "[" + ",\n".join(lines) + "]"))
        assert [problem.line for problem in problems.first] == [2501]
        assert "column 11: Expecting ',' delimiter" in problems.first[0].message


class TestCsv:
    @pytest.fixture(autouse=True)
    def _field_limit(self) -> Iterator[None]:
        before = csv.field_size_limit()
        yield
        csv.field_size_limit(before)

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_quoting_and_delimiters(self, write: Write, delimiter: str) -> None:
        content = f'question{delimiter}answer\r\n"a{delimiter} ""b""\nc"{delimiter}d\r\n\r\ne{delimiter}f\r\n'
        rows, problems = read(write("a.csv", content))
        assert rows == [
            (2, {"question": f'a{delimiter} "b"\nc', "answer": "d"}),
            (5, {"question": "e", "answer": "f"}),
        ]
        assert not problems.total

    def test_a_row_with_another_number_of_fields_is_named(self, write: Write) -> None:
        rows, problems = read(write("a.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n"))
        assert [line for line, _ in rows] == [2, 5]
        assert [str(problem) for problem in problems.first] == [
            "line 3: has 1 fields where the header has 2",
            "line 4: has 3 fields where the header has 2",
        ]

    def test_a_quote_that_never_ends_is_named_where_it_begins(self, write: Write) -> None:
        _, problems = read(write("a.csv", 'a,b\n1,2\n3,"4\n' + "5,6\n" * 20))
        assert [problem.line for problem in problems.first] == [3]
        assert "broken CSV" in problems.first[0].message

    def test_a_field_above_the_standard_limit_of_the_csv_module_is_read(self, write: Write) -> None:
        rows, _ = read(write("a.csv", "a,b\n1," + "x" * 200_000 + "\n"))
        assert len(rows[0][1]["b"]) == 200_000  # type: ignore[call-overload]

    @pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\r\r\n"])
    def test_every_line_end_is_read(self, write: Write, end: str) -> None:
        rows, problems = read(write("a.csv", f'a,b{end}1,"x\ry"{end}3,4{end}'.encode()))
        assert [row for _, row in rows] == [{"a": "1", "b": "x\ry"}, {"a": "3", "b": "4"}]
        assert not problems.total

    def test_mixed_line_ends_are_read(self, write: Write) -> None:
        rows, _ = read(write("a.csv", b"a,b\r1,2\n3,4\r\n5,6\r7,8"))
        assert [line for line, _ in rows] == [2, 3, 4, 5]

    @pytest.mark.parametrize(("mark", "separator"), [("sep=;", ";"), ("SEP=\t", "\t"), ('"sep=|"', "|")])
    def test_the_first_line_for_excel_says_the_separator(self, write: Write, mark: str, separator: str) -> None:
        rows, problems = read(write("a.csv", f"\ufeff{mark}\r\na{separator}b, c\r\n1{separator}2\r\n"))
        assert rows == [(3, {"a": "1", "b, c": "2"})]
        assert not problems.total

    def test_a_vertical_bar_separates(self, write: Write) -> None:
        assert read(write("a.csv", "question|answer\na, b|c\n"))[0] == [(2, {"question": "a, b", "answer": "c"})]

    def test_joined_files_are_read_and_the_second_header_is_named(self, write: Write) -> None:
        rows, problems = read(write("a.csv", '\ufeffa,b\n1,2\n\ufeffa,b\n\ufeff"3, 4",5\n'))
        assert rows == [(2, {"a": "1", "b": "2"}), (4, {"a": "3, 4", "b": "5"})]
        assert [str(problem) for problem in problems.first] == [
            "line 3: repeats the header: were files joined? Remove this line"
        ]

    def test_empty_rows_of_a_spreadsheet_are_nothing(self, write: Write) -> None:
        rows, problems = read(write("a.csv", "a,b\n1,2\n,\n ,\n"))
        assert (len(rows), problems.total) == (1, 0)

    def test_latin1_is_named_by_line(self, write: Write) -> None:
        _, problems = read(write("a.csv", "a,b\nx,y\nx,é\n".encode("latin-1")))
        assert problems.counts == {Fault.UNDECODABLE: 1}
        assert problems.first[0].line == 3

    def test_a_header_that_names_a_column_twice_is_refused(self, write: Write) -> None:
        with pytest.raises(DataError, match=r"a\.csv:1: the header has two columns named 'a'"):
            read(write("a.csv", "a,b,a\n1,2,3\n"))

    def test_a_blank_header_is_refused(self, write: Write) -> None:
        with pytest.raises(DataError, match="no column names"):
            read(write("a.csv", "\n1,2\n"))

    def test_an_index_column_without_a_name_is_kept_apart(self, write: Write) -> None:
        assert read(write("a.csv", ",a\n0,x\n"))[0] == [(2, {"(column 1)": "0", "a": "x"})]
