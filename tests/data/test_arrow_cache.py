"""The cache: parsed once, shared by processes, made again when damaged."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Write, qa
from tests.support.programs import ProgramRunner, RunningProgram

from lorahydra.config.schema import DataConfig
from lorahydra.data import Example, load_splits
from lorahydra.data.arrow_cache import FACTS, TABLE, Store, Writer, cached


def entry(cache: Path) -> Path:
    [folder] = [path for path in (cache / "rows").iterdir() if path.is_dir()]
    return folder


def load(path: Path, cache: Path) -> list[Example]:
    splits = load_splits(DataConfig(train_file=str(path)), 0, cache=cache)
    return [*splits.train, *splits.validation, *(splits.test or ())]


def test_the_same_content_is_read_once_wherever_it_lies(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = load(write("a.jsonl", qa(20)), tmp_path / "c")
    assert load(write("b.jsonl", qa(20)), tmp_path / "c") == first
    assert [record.message for record in caplog.records] == [f"Reading {tmp_path / 'a.jsonl'}"]
    load(write("b.jsonl", qa(21)), tmp_path / "c")
    assert len(caplog.records) == 2


def damage_cut(folder: Path) -> None:
    with (folder / TABLE).open("r+b") as stream:
        stream.truncate(200)


def damage_bit(folder: Path) -> None:
    content = bytearray((folder / TABLE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / TABLE).write_bytes(content)


def damage_zero(folder: Path) -> None:
    (folder / TABLE).write_bytes(b"")
    (folder / FACTS).write_bytes(b"")


def damage_missing_table(folder: Path) -> None:
    (folder / TABLE).unlink()


def damage_missing_facts(folder: Path) -> None:
    (folder / FACTS).unlink()


def damage_facts(folder: Path) -> None:
    (folder / FACTS).write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_bit, damage_zero, damage_missing_table, damage_missing_facts, damage_facts],
)
def test_a_damaged_entry_is_made_again(write: Write, tmp_path: Path, damage: Any) -> None:
    path, cache = write("a.jsonl", qa(50)), tmp_path / "c"
    first = load(path, cache)
    damage(entry(cache))
    assert load(path, cache) == first
    Store(entry(cache))


def test_examples_stay_readable_when_the_cache_is_removed(write: Write, tmp_path: Path) -> None:
    splits = load_splits(DataConfig(train_file=str(write("a.jsonl", qa(50)))), 0, cache=tmp_path / "c")
    for file in entry(tmp_path / "c").iterdir():
        file.unlink()
    assert splits.train[0].messages


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    import pyarrow as pa

    def build(writer: Writer) -> Mapping[str, Any]:
        writer.add((1,), 10**9)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cached(tmp_path / "c" / "key", pa.schema({"n": pa.int64()}), build)
    assert [path.name for path in (tmp_path / "c").iterdir()] in ([], [".key.lock"])


SCRIPT = """
import os, signal, sys
from lorahydra.config.schema import DataConfig
from lorahydra.data import load_splits, ingest
if sys.argv[3] == "die":
    add = ingest.Writer.add
    def dying(self, row, size):
        add(self, row, size)
        if self.rows == 15:
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    ingest.Writer.add = dying
from pathlib import Path
splits = load_splits(DataConfig(train_file=sys.argv[1]), 0, cache=Path(sys.argv[2]))
sys.stdout.write(splits.train.digest)
"""


def start(programs: ProgramRunner, path: Path, cache: Path, how: str) -> RunningProgram:
    return programs.start(["-c", SCRIPT, str(path), str(cache), how], path.parent)


@pytest.mark.slow
def test_a_killed_process_leaves_a_cache_that_works(programs: ProgramRunner, write: Write, tmp_path: Path) -> None:
    path, cache = write("a.jsonl", qa(50)), tmp_path / "c"
    assert start(programs, path, cache, "die").wait() == -signal.SIGKILL
    assert [child.is_dir() for child in (cache / "rows").glob(".*.*")].count(True) == 1
    assert len(load(path, cache)) == 50
    assert [child for child in (cache / "rows").glob(".*") if child.is_dir()] == []


@pytest.mark.slow
def test_processes_at_once_agree(programs: ProgramRunner, write: Write, tmp_path: Path) -> None:
    path, cache = write("a.jsonl", qa(3000)), tmp_path / "c"
    processes = [start(programs, path, cache, "live") for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    digest = load_splits(DataConfig(train_file=str(path)), 0, cache=cache).train.digest
    assert {process.output for process in processes} == {digest}
    assert len([child for child in (cache / "rows").iterdir() if child.is_dir()]) == 1


MEASURE = """
import resource, sys
from pathlib import Path
from lorahydra.config.schema import DataConfig
from lorahydra.data import load_splits
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
cache, *files = sys.argv[1:]
small, large = files[: len(files) // 2], files[len(files) // 2 :]
for name in small:
    load_splits(DataConfig(train_file=name), 0, cache=Path(cache))
for name in large:
    before = peak()
    splits = load_splits(DataConfig(train_file=name), 0, cache=Path(cache))
    print(peak() - before, len(splits.train) + len(splits.validation) + len(splits.test))
"""


@pytest.mark.slow
def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    rows = 30_000
    files = [
        (tmp_path / f"{size}{suffix}", rows if size == "large" else 20)
        for size in ("small", "large")
        for suffix in (".jsonl", ".json", ".csv")
    ]
    for path, count in files:
        with path.open("w", encoding="utf-8") as stream:
            write_rows(stream, path.suffix, count)
    assert files[-1][0].stat().st_size > 30e6
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "c"), *(str(path) for path, _ in files)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
    measured = [tuple(map(int, line.split())) for line in output.splitlines()]
    assert [read for _, read in measured] == [rows] * 3
    assert all(grown < 20e6 for grown, _ in measured)


def write_rows(stream: Any, suffix: str, count: int) -> None:
    stream.write({".csv": "question,answer\n", ".json": "["}.get(suffix, ""))
    for n in range(count):
        question, answer = f"{n} " + "q" * 500, "a" * 500
        if suffix == ".csv":
            stream.write(f"{question},{answer}\n")
        else:
            comma = ",\n" if suffix == ".json" and n else ""
            stream.write(f'{comma}{{"question": "{question}", "answer": "{answer}"}}')
            stream.write("\n" if suffix == ".jsonl" else "")
    stream.write("]" if suffix == ".json" else "")
