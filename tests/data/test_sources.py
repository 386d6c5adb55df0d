"""Finding sources, and reading each format end to end into the same examples."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Write, pairs, qa, train_rows
from tests.support.hubs import silent_hub

from lorahydra.config.schema import ColumnsConfig, DataConfig
from lorahydra.data import load_splits
from lorahydra.data.ingest import Rows
from lorahydra.data.sources import locate
from lorahydra.errors import DataError, OutputError, ServiceError

ROWS = [*qa(5), {"question": 'a "quoted"; line\nand, more\t', "answer": "Ünï 😀"}]


def save_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)


def save_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([{**row, "image": b"\0\1"} for row in ROWS]), path, row_group_size=2)


def save_folder(path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(str(path))


SAVERS = {
    "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), "utf-8"),
    "a.ndjson": lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), "utf-8"),
    "a.JSON": lambda path: path.write_text(json.dumps(ROWS), "utf-8"),
    "a.csv": save_csv,
    "a.parquet": save_parquet,
    "folder": save_folder,
}


@pytest.mark.parametrize("name", SAVERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    SAVERS[name](tmp_path / name)
    rows = train_rows(tmp_path / name)
    assert pairs(rows) == [tuple(row.values()) for row in ROWS]
    assert rows.report.format == "question_answer"
    assert rows.source == str(tmp_path / name)
    assert rows.report.columns_ignored == (["image"] if name == "a.parquet" else [])


def test_every_format_has_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name, save in SAVERS.items():
        save(tmp_path / name)
        digests.add(load_splits(DataConfig(train_file=str(tmp_path / name)), 0).train.digest)
    assert len(digests) == 1


def test_the_demo_comes_with_its_own_validation_and_test_files() -> None:
    splits = load_splits(DataConfig(train_file="demo"), 0)
    assert splits.test is not None
    assert [split.source for split in (splits.train, splits.validation, splits.test)] == [
        "demo/train.jsonl",
        "demo/validation.jsonl",
        "demo/test.jsonl",
    ]
    assert len(splits.train) > len(splits.validation) > 0
    assert not [leak for leak in splits.report.leakage if leak.same_prompt]


def test_a_saved_dict_is_read_by_split(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    parts = {"train": Dataset.from_list(qa(20)), "dev": Dataset.from_list(qa(5, 50))}
    DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    folder = str(tmp_path / "d")
    splits = load_splits(DataConfig(train_file=folder, validation_split="dev", test_fraction=0), 0)
    assert (len(splits.train), len(splits.validation), splits.test) == (20, 5, None)
    assert splits.validation[0].messages[0].content == "What is 50 + 1?"
    with pytest.raises(DataError, match=r"no split 'training': set data\.train_split .* one of train, dev"):
        train_rows(train_file=folder, train_split="training")


def test_a_saved_dataset_with_messages_is_read(tmp_path: Path) -> None:
    from datasets import Dataset

    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    Dataset.from_list([{"messages": turns}] * 2).save_to_disk(str(tmp_path / "d"))
    assert pairs(train_rows(tmp_path / "d")) == [("Q", "A")] * 2


def test_mapped_columns_of_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"q": ["Q"], "a": ["A"], "x": [1.5]}), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    rows = train_rows(train_file=path, columns=ColumnsConfig(question="q", answer="a"))
    assert pairs(rows) == [("Q", "A")]
    assert rows.report.columns_used == {"question": "q", "answer": "a"}
    assert rows.report.columns_ignored == ["x"]
    with pytest.raises(DataError, match=r"columns found \(a, q, x\)"):
        train_rows(train_file=path)


def test_a_null_in_parquet_is_named_by_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"question": ["Q", "Q"], "answer": ["A", None]}), path)
    with pytest.raises(DataError, match=r"a\.parquet:2: field 'answer': holds null"):
        load_splits(DataConfig(train_file=str(path)), 0)


class TestOddColumns:
    """Types that Arrow knows and a row of text does not."""

    def parquet(self, folder: Path, **columns: Any) -> Rows:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), folder / "a.parquet")
        return train_rows(folder / "a.parquet")

    def test_text_in_any_form_is_text(self, tmp_path: Path) -> None:
        import pyarrow as pa

        text = pa.array(["Q", "R"])
        for form in (text.dictionary_encode(), text.cast(pa.large_string()), text.cast(pa.string_view())):
            assert pairs(self.parquet(tmp_path, question=form, answer=text)) == [("Q", "Q"), ("R", "R")]

    def test_turns_as_maps_are_objects(self, tmp_path: Path) -> None:
        import pyarrow as pa

        turns = [[("role", "user"), ("content", "Q")], [("role", "assistant"), ("content", "A")]]
        messages = pa.array([turns], pa.list_(pa.map_(pa.string(), pa.string())))
        assert pairs(self.parquet(tmp_path, messages=messages)) == [("Q", "A")]

    def test_values_that_are_not_text_are_problems_of_their_rows(self, tmp_path: Path) -> None:
        import datetime
        import decimal

        for value in (datetime.datetime(2026, 1, 1), decimal.Decimal("1.5"), b"\xff", [["x"]], {"a": None}, None):
            rows = self.parquet(tmp_path, question=["Q", "Q"], answer=[value, value])
            assert [(problem.line, problem.field) for problem in rows.problems] == [(1, "answer"), (2, "answer")]

    def test_a_value_that_cannot_be_read_costs_its_row_only(self, tmp_path: Path) -> None:
        import pyarrow as pa

        broken = pa.StringArray.from_buffers(
            3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
        )
        rows = self.parquet(tmp_path, question=["P", "Q", "R"], answer=broken)
        assert pairs(rows) == [("P", "a"), ("R", "c")]
        assert [problem.line for problem in rows.problems] == [2]
        assert rows.report.undecodable_lines == rows.report.problems == 1

    def test_a_column_that_is_there_twice_is_refused_where_it_matters(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = tmp_path / "a.parquet"
        column = pa.array(["x"])
        pq.write_table(pa.Table.from_arrays([column] * 3, names=["question", "answer", "answer"]), path)
        with pytest.raises(DataError, match=r"a\.parquet: has two columns named 'answer'"):
            train_rows(path)
        pq.write_table(pa.Table.from_arrays([column] * 4, names=["question", "answer", "n", "n"]), path)
        assert pairs(train_rows(path)) == [("x", "x")]

    def test_rows_that_the_footer_promises_and_the_file_lacks_are_missed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pyarrow.parquet as pq

        read = pq.ParquetFile.iter_batches
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **options: list(read(*args, **options))[:1])
        with pytest.raises(DataError, match="is damaged: it says that it has 600 rows, but there are 256"):
            self.parquet(tmp_path, question=["Q"] * 600, answer=["A"] * 600)

    def test_a_flipped_bit_in_the_data_is_seen_where_the_file_has_checksums(self, tmp_path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = tmp_path / "a.parquet"
        table = pa.table({"question": ["Quick"], "answer": ["Answer"]})
        pq.write_table(
            table, path, write_page_checksum=True, compression="none", use_dictionary=False, write_statistics=False
        )
        path.write_bytes(path.read_bytes().replace(b"Quick", b"Quack", 1))
        with pytest.raises(DataError, match=r"a\.parquet: .*[Cc][Rr][Cc]"):
            train_rows(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"ARROW1\0\0", "is an Arrow"),
        (b"PARE....", "is an encrypted Parquet file"),
        (b"PK\x03\x04", "is a zip archive"),
    ],
)
def test_something_else_under_a_parquet_name_is_named(write: Write, content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet: {what}"):
        train_rows(write("a.parquet", content))


@pytest.mark.parametrize("content", [b"nonsense", b"PAR1 cut off", b""])
def test_damaged_parquet_is_refused(write: Write, content: bytes) -> None:
    path = write("a.parquet", content)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        train_rows(path)


def test_a_damaged_saved_dataset_is_refused(tmp_path: Path) -> None:
    save_folder(tmp_path / "d")
    next((tmp_path / "d").glob("*.arrow")).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        train_rows(tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a saved dataset"):
        train_rows(tmp_path / "d")


class TestFilesThatCannotBeUsed:
    def refused(self, path: Path | str, pattern: str) -> None:
        with pytest.raises(DataError, match=pattern) as caught:
            train_rows(path)
        assert "\n" not in str(caught.value)

    def test_a_missing_file_proposes_close_names(self, write: Write, tmp_path: Path) -> None:
        write("train.jsonl", qa(2))
        self.refused(tmp_path / "trian.jsonl", r"trian\.jsonl: no such file \(did you mean train\.jsonl\?\)")
        self.refused(tmp_path / "other.csv", "nothing of this name exists in")
        self.refused(tmp_path / "no" / "a.csv", "the folder .*no does not exist")

    def test_a_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "is a folder, and not one that `datasets` saved")

    def test_an_unknown_extension(self, write: Write) -> None:
        self.refused(write("a.txt", "x"), r"the extension '\.txt' is not supported: use one of \.jsonl, ")

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
        (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
        self.refused(tmp_path / "a.jsonl", "cannot be read: .*symbolic links")

    def test_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.jsonl")
        self.refused(tmp_path / "a.jsonl", "is not a regular file")

    def test_a_name_that_no_file_can_have(self, tmp_path: Path) -> None:
        self.refused(str(tmp_path / "a\0.jsonl"), "is not a file name")
        self.refused(tmp_path / ("x" * 300 + ".jsonl"), "cannot be read: File name too long")

    def test_a_name_that_no_log_can_show(self, tmp_path: Path) -> None:
        self.refused(os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl"), r"\\udcff\.jsonl: has a name that is not UTF-8")
        self.refused(tmp_path / "a\nb.jsonl", r"a\\nb\.jsonl: no such file")
        self.refused("~nobody-of-this-name/a.jsonl", "cannot be read: .*home directory")

    def test_a_compressed_file(self, write: Write) -> None:
        self.refused(write("a.jsonl.gz", b"x"), r"is compressed \(\.gz\): unpack it first")

    def test_no_permission(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *args: Any, **options: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        path = write("a.jsonl", qa(2))
        # Not with chmod: root may read everything.
        monkeypatch.setattr(Path, "open", refuse)
        self.refused(path, "no permission to read it")

    def test_compressed_under_a_jsonl_name(self, write: Write) -> None:
        self.refused(write("a.jsonl", b"\x1f\x8b\x08\0\0\0\0\0"), "is gzip-compressed: decompress it first")

    @pytest.mark.parametrize(
        ("name", "content", "pattern"),
        [
            ("a.jsonl", "", "the file is empty"),
            ("a.jsonl", " \n\n", "has no rows"),
            ("a.json", "[]", "has no rows"),
            ("a.csv", "question,answer\n", "has no rows"),
            ("a.jsonl", "{}\n", "a.jsonl:1: is an object without fields"),
            ("a.jsonl", "3\n4\n", "a.jsonl:1: holds the number 3 where an object .*and 1 more"),
            ("a.csv", "q\0,a\0\n1,2\n", r"columns found \(a\\x00, q\\x00\)"),
            ("a.jsonl", '{"text": "x"}\n', r"no column scheme fits the columns found \(text\)"),
        ],
    )
    def test_no_rows(self, write: Write, name: str, content: str, pattern: str) -> None:
        with pytest.raises(DataError, match=pattern):
            load_splits(DataConfig(train_file=str(write(name, content))), 0)

    def test_a_missing_validation_file_is_found_before_the_training_file_is_read(self, write: Write) -> None:
        broken = write("a.jsonl", "{broken")
        with pytest.raises(DataError, match=r"nope\.jsonl: no such file"):
            locate(DataConfig(train_file=str(broken), validation_file="nope.jsonl"))

    def test_a_file_that_changes_while_it_is_read(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write("a.jsonl", qa(20))
        from lorahydra.data import ingest

        read = ingest._read

        def read_and_change(*args: Any) -> Any:
            facts = read(*args)
            path.write_text(path.read_text() + "\n")
            return facts

        monkeypatch.setattr(ingest, "_read", read_and_change)
        with pytest.raises(DataError, match="changed while it was read"):
            train_rows(path)


class TestProblems:
    def test_the_first_is_raised_and_the_others_counted(self, write: Write) -> None:
        rows: list[Any] = [
            *qa(3),
            {"question": "Q"},
            *qa(3, 10),
            {"question": "Q", "answer": 4},
            {"answer": "A"},
        ]
        path = write("a.jsonl", rows)
        with pytest.raises(DataError) as caught:
            load_splits(DataConfig(train_file=str(path)), 0)
        assert str(caught.value) == (
            f"{path}:4: field 'answer': is missing (and 2 more; run `lorahydra data check` to list them)"
        )
        assert (caught.value.line, caught.value.field) == (4, "answer")

    def test_they_name_the_file_at_hand_also_when_the_content_was_read_before(self, write: Write) -> None:
        for name in ("a.jsonl", "b.jsonl"):
            with pytest.raises(DataError, match=rf"{name}:1: "):
                load_splits(DataConfig(train_file=str(write(name, [{"question": "Q", "answer": 1}]))), 0)

    def test_columns_of_a_file_with_other_keys_in_each_row_are_bounded(self, write: Write) -> None:
        rows = train_rows(write("a.jsonl", [{**row, f"k{n}": n} for n, row in enumerate(qa(3000))]))
        assert len(rows.report.columns_ignored) < 1100

    def test_a_key_that_is_not_printable_does_not_break_the_report(self, write: Write) -> None:
        rows = train_rows(write("a.jsonl", '{"prompt": "P", "completion": "C", "\\ud800\\n": 1}'))
        assert rows.report.columns_ignored == ["\\ud800"]


class TestHub:
    """`datasets` itself is run, on its cache or offline; nothing here reaches a network."""

    def test_offline_without_a_cache_is_a_service_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            ServiceError, match=r"hub dataset 'nobody/nothing-here'.*go online, or use a local"
        ) as caught:
            load_splits(DataConfig(hub_name="nobody/nothing-here"), 0)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3

    def test_a_hub_that_is_away_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        with silent_hub() as (address, requests):
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
            with pytest.raises(ServiceError, match=rf"'a/b' is not in the local cache, and {address} cannot be rea"):
                load_splits(DataConfig(hub_name="a/b"), 0)
        # huggingface_hub may look up its list of programs that call it, once a process.
        asked = [path for path in requests if "/datasets/" in path]
        assert len(asked) == 1, "`datasets` would try for half a minute"
        assert not datasets.config.HF_HUB_OFFLINE, "as before"

    @pytest.mark.parametrize(
        "error",
        [
            "DatasetNotFoundError: no such dataset",
            "ValueError: Unknown split",
            "RuntimeError: Dataset scripts",
        ],
    )
    def test_what_the_hub_does_not_have_is_a_data_error(self, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
        import builtins

        import datasets

        name, _, message = error.partition(": ")
        kind = getattr(datasets.exceptions, name, None) or getattr(builtins, name)

        def refuse(*args: Any, **options: Any) -> None:
            raise kind(f"{message}\nand a second line")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(DataError, match=f"hub dataset 'a/b' cannot be used: {message}$"):
            load_splits(DataConfig(hub_name="a/b"), 0)

    def test_a_dataset_is_asked_for_by_revision_and_split(
        self, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        path = write("rows.jsonl", [{**row, "topic": "sums"} for row in qa(10)])
        load, asked = datasets.load_dataset, []

        def from_file(name: str, config: str | None, **options: Any) -> Any:
            asked.append((name, config, options["revision"], options["split"]))
            assert "trust_remote_code" not in options
            split = options["split"].replace("dev", "train[:4]")
            return load("json", data_files=str(path), split=split, cache_dir=str(tmp_path / "hf"))

        monkeypatch.setattr(datasets, "load_dataset", from_file)
        names = {"hub_name": "a/b", "hub_config": "main", "hub_revision": "v1", "validation_split": "dev"}
        splits = load_splits(DataConfig(**names, test_fraction=0, max_leakage=1), 0)
        assert asked == [("a/b", "main", "v1", "train"), ("a/b", "main", "v1", "dev")]
        assert (len(splits.train), len(splits.validation)) == (10, 4)
        assert splits.train.source == "hub:a/b/main/train"
        assert splits.report.sources[0].columns_ignored == ["topic"]


def test_an_unwritable_cache_is_one_clear_line(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAHYDRA_CACHE", str(write("file", "x")))
    with pytest.raises(OutputError, match=r"cannot write to .*a part of the path is a file"):
        train_rows(write("a.jsonl", qa(2)))
