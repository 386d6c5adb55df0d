"""Unusual data files of every kind: there must be no traceback, and nothing may be left out of a file silently.

python benchmarks/odd_files.py [--files 300] [--processes 12] [--trainings 6] [--seed 0]

Makes the files with a seed and gives each to `lorahydra data check`, called in this process; `--processes` of them also
to the real command, and `--trainings` to `train.py`, both with a tiny model. Each must end with exit code 0 or 2 and
without a traceback, and every line of an error must name the file. If a file is accepted (0), the text that carries
loss after splitting and tokenizing is compared with the texts in the file. If it is refused because of its encoding, it
is read again with the encoding that the error names. Prints a line for each kind; exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]
WORDS = {
    "windows-1251": "заказ возврат товар почта деньги завтра доставка спасибо пожалуйста магазин",
    "koi8-r": "заказ возврат товар почта деньги завтра доставка спасибо пожалуйста магазин",
    "cp866": "заказ возврат товар почта деньги завтра доставка спасибо пожалуйста магазин",
    "utf-16-le": "заказ возврат товар почта деньги завтра доставка спасибо пожалуйста магазин",
    "windows-1252": "café élève Noël déjà très préféré où être Müller Straße für größer",
    "shift_jis": "返品の方法 注文はどこですか 明日届きます メールでご連絡ください ありがとうございます",
    "gbk": "如何退货 我的订单在哪里 请发送电子邮件 明天送达 我们将在三天内退款",
    "utf-16-be": "order return goods mail money tomorrow delivery thanks please shop",
}


@dataclass
class Case:
    """One file."""

    kind: str
    path: Path
    answers: list[str] | None
    """The texts in the file that should be learnt; None if damage makes that uncertain."""
    options: list[str] = field(default_factory=list)


def _rows_of(rng: random.Random, count: int = 12, words: str = WORDS["windows-1251"]) -> list[Row]:
    """Distinct questions and answers."""
    choose = words.split()
    return [
        {
            "question": f"{rng.choice(choose)} {rng.choice(choose)} {n}?",
            "answer": f"{rng.choice(choose)}, {n} {rng.choice(choose)}.",
        }
        for n in range(count)
    ]


def _answers(rows: Iterable[Row]) -> list[str]:
    return [row["answer"] for row in rows]


def _turns(rows: list[Row], column: str = "messages") -> list[Row]:
    speaker, text, names = (
        ("role", "content", ("user", "assistant")) if column == "messages" else ("from", "value", ("human", "gpt"))
    )
    return [
        {column: [{speaker: names[0], text: row["question"]}, {speaker: names[1], text: row["answer"]}]} for row in rows
    ]


def _lines(rows: list[Row], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def _table(rows: list[Row], delimiter: str = ",", end: str = "\r\n") -> str:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=end)
    writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    return sink.getvalue()


def _parquet(path: Path, columns: dict[str, Any] | Any, **options: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)


class Maker:
    """Makes files in a folder."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng, self.number = folder, rng, 0

    def _case(
        self, kind: str, suffix: str, content: bytes | str | None, wanted: list[str] | None, *options: str
    ) -> Case:
        self.number += 1
        path = self.folder / f"{self.number:03d}{suffix}"
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Case(kind, path, wanted, list(options))

    def _line_ends(self) -> Case:
        rows, end = _rows_of(self.rng), self.rng.choice(["\r", "\n", "\r\n", "\r\r\n"])
        if self.rng.random() < 0.5:
            return self._case("line ends", ".jsonl", _lines(rows, end), _answers(rows))
        rows[0]["answer"] += f"{end[0]}and a second line"
        return self._case("line ends", ".csv", _table(rows, end=end), _answers(rows))

    def _marks(self) -> Case:
        rows, more, mark = _rows_of(self.rng), _rows_of(self.rng, 20)[12:], "\ufeff"
        if self.rng.random() < 0.5:
            return self._case(
                "byte order marks",
                ".jsonl",
                mark * self.rng.randint(1, 2) + _lines(rows) + mark + _lines(more),
                _answers(rows + more),
            )
        return self._case(
            "byte order marks",
            ".csv",
            mark + _table(rows) + mark + _table(more).partition("\r\n")[2],
            _answers(rows + more),
        )

    def _joined(self) -> Case:
        rows = _rows_of(self.rng)
        return self._case("joined CSV files", ".csv", ("\ufeff" + _table(rows)) * 2, _answers(rows))

    def _separators(self) -> Case:
        rows, delimiter = _rows_of(self.rng), self.rng.choice(",;\t|")
        first = f"sep={delimiter}\r\n" if self.rng.random() < 0.5 else ""
        below = (delimiter + "\r\n") * self.rng.randint(0, 3)
        return self._case("separators, sep=", ".csv", first + _table(rows, delimiter) + below, _answers(rows))

    def _pandas(self) -> Case:
        rows, form = (
            _rows_of(self.rng),
            self.rng.choice(["records", "split", "index", "columns", "list", "table", "values"]),
        )
        columns = list(rows[0])
        value: Any = {
            "records": rows,
            "split": {
                "columns": columns,
                "index": list(range(len(rows))),
                "data": [list(row.values()) for row in rows],
            },
            "index": {str(n): row for n, row in enumerate(rows)},
            "columns": {name: {str(n): row[name] for n, row in enumerate(rows)} for name in columns},
            "list": {name: [row[name] for row in rows] for name in columns},
            "table": {"schema": {"fields": []}, "data": rows},
            "values": [list(row.values()) for row in rows],
        }[form]
        indent = self.rng.choice([None, 1])
        return self._case(
            "forms of pandas", ".json", json.dumps(value, ensure_ascii=False, indent=indent), _answers(rows)
        )

    def _encodings(self) -> Case:
        encoding = self.rng.choice(list(WORDS))
        rows = _rows_of(self.rng, words=WORDS[encoding])
        suffix = self.rng.choice([".csv", ".jsonl", ".json"])
        text = {".csv": _table, ".jsonl": _lines, ".json": lambda rows: json.dumps(rows, ensure_ascii=False)}[suffix](
            rows
        )
        return self._case("encodings", suffix, text.encode(encoding), _answers(rows))

    def _one_line_of_another_encoding(self) -> Case:
        rows = _rows_of(self.rng)
        parts = [line.encode("cp1251" if n == 5 else "utf-8") for n, line in enumerate(_lines(rows).splitlines(True))]
        return self._case("one line of another encoding", ".jsonl", b"".join(parts), _answers(rows))

    def _structure(self) -> Case:
        rows = _rows_of(self.rng)
        text = _table(rows)
        content = self.rng.choice(
            [
                text + "a,b,c\r\n",
                text + "alone\r\n",
                text + 'x,"never ends\r\ny,z\r\n',
                text + 'x,"in"side"\r\n',
                text + "x\0y,z\r\n",
                text.replace("question,answer", "question,question", 1),
                text.replace("question,answer", ",", 1),
                text.partition("\r\n")[0],
                text.replace("question,answer", "вопрос,ответ", 1),
            ]
        )
        return self._case("CSV structure", ".csv", content, _answers(rows))

    def _broken_json(self) -> Case:
        rows = _rows_of(self.rng)
        bad = self.rng.choice(
            [
                '{"question": "Q", "answer": NaN}',
                '{"question": "Q"',
                "[" * 100_000,
                '{"question": "\\ud800", "answer": "A"}',
                '{"a": 1, "a": 2}',
                '{"question": "Q", "answer": ' + "9" * 5000 + "}",
                '{"question": "x\0", "answer": "A"}',
                "{'question': 'Q'}",
                "null",
                "[]",
                "{}",
                '"text"',
            ]
        )
        return self._case("broken JSON", ".jsonl", _lines(rows) + bad + "\n", _answers(rows))

    def _values(self) -> Case:
        rows: list[Row] = _rows_of(self.rng)
        wanted = _answers(rows)
        rows[self.rng.randrange(12)]["answer"] = self.rng.choice(
            [None, 5, 1.5, True, [], {}, "", "  ", ["x"], {"a": "b"}]
        )
        return self._case("values that are not text", self.rng.choice([".jsonl", ".json"]), _lines(rows), wanted)

    def _conversations(self) -> Case:
        rows = _rows_of(self.rng)
        made = _turns(rows, self.rng.choice(["messages", "conversations"]))
        how = self.rng.choice([".jsonl", ".json", ".csv", ".parquet"])
        if how == ".parquet":
            case = self._case("conversations", how, None, _answers(rows))
            _parquet(case.path, {name: [row[name] for row in made] for name in made[0]})
            return case
        if how == ".csv":
            made = [{name: json.dumps(value, ensure_ascii=False) for name, value in row.items()} for row in made]
            return self._case("conversations", how, _table(made), _answers(rows))
        return self._case("conversations", how, _lines(made), _answers(rows))

    def _text_columns(self) -> Case:
        import pyarrow as pa

        rows = _rows_of(self.rng)
        kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
        case = self._case("Parquet, columns of text", ".parquet", None, _answers(rows))
        columns = {name: pa.array([row[name] for row in rows]).cast(self.rng.choice(kinds)) for name in rows[0]}
        _parquet(
            case.path,
            columns,
            row_group_size=self.rng.choice([1, 5, 100]),
            compression=self.rng.choice(["none", "snappy", "zstd", "gzip"]),
        )
        return case

    def _odd_columns(self) -> Case:
        import pyarrow as pa

        rows = _rows_of(self.rng)
        count = len(rows)
        odd = self.rng.choice(
            [
                pa.array(range(count)),
                pa.nulls(count),
                pa.array([1.5] * count),
                pa.array(range(count)).cast(pa.timestamp("ns")),
                pa.array(range(count)).cast(pa.duration("ns")),
                pa.array([{"a": [1]}] * count),
                pa.array([[("k", "v")]] * count, pa.map_(pa.string(), pa.string())),
                pa.array([b"\xff"] * count),
                pa.array(["1.5"] * count).cast(pa.decimal128(5, 2)),
            ]
        )
        columns = {
            "question": [row["question"] for row in rows],
            "answer": [row["answer"] for row in rows],
            "more": odd,
        }
        case = self._case("Parquet, odd columns", ".parquet", None, _answers(rows))
        which = self.rng.choice(["answer", "more", "twice"])
        if which == "twice":
            _parquet(
                case.path,
                pa.Table.from_arrays([pa.array(columns["question"]), odd, odd], names=["question", "answer", "answer"]),
            )
        else:
            _parquet(case.path, {**columns, which: odd})
        return case

    def _damaged(self) -> Case:
        rows = _rows_of(self.rng)
        suffix = self.rng.choice([".jsonl", ".json", ".csv", ".parquet"])
        case = self._case("random damage", suffix, _lines(rows) if suffix != ".csv" else _table(rows), None)
        if suffix == ".parquet":
            _parquet(case.path, {name: [row[name] for row in rows] for name in rows[0]})
        content = bytearray(case.path.read_bytes())
        for _ in range(self.rng.randint(1, 4)):
            place = self.rng.randrange(len(content))
            how = self.rng.randrange(4)
            if how == 0:
                content[place] ^= 1 << self.rng.randrange(8)
            elif how == 1:
                del content[place:]
            elif how == 2:
                content[place:place] = self.rng.randbytes(self.rng.randint(1, 30))
            else:
                del content[place : place + self.rng.randint(1, 30)]
            if not content:
                break
        case.path.write_bytes(content)
        return case

    def _not_data(self) -> Case:
        rows = _rows_of(self.rng)
        whole = _lines(rows).encode()
        suffix, content = self.rng.choice(
            [
                (".jsonl", gzip.compress(whole)),
                (".jsonl.gz", gzip.compress(whole)),
                (".csv", b"PK\x03\x04" + self.rng.randbytes(500)),
                (".xlsx", b"PK\x03\x04" + self.rng.randbytes(500)),
                (".csv", b"\xd0\xcf\x11\xe0" + self.rng.randbytes(500)),
                (".csv", b"SQLite format 3\0" + self.rng.randbytes(500)),
                (".parquet", b"ARROW1\0\0" + self.rng.randbytes(500)),
                (".parquet", b"PARE" + self.rng.randbytes(500)),
                (".parquet", whole),
                (".jsonl", self.rng.randbytes(2000)),
                (".csv", self.rng.randbytes(2000)),
                (".json", b""),
                (".csv", b"\r\n \r\n"),
                (".txt", whole),
            ]
        )
        return self._case("not data at all", suffix, content, _answers(rows))

    def _not_a_file(self) -> Case:
        case = self._case("not a file", self.rng.choice([".jsonl", ".csv", ".parquet"]), None, [])
        how = self.rng.randrange(7)
        if how == 0:
            case.path.mkdir()
        elif how == 1:
            os.mkfifo(case.path)
        elif how == 2:
            case.path.symlink_to(case.path.name)
        elif how == 3:
            case.path = case.path.with_name("a\nb" + case.path.name)
        elif how == 4:
            case.path = Path(os.fsdecode(os.fsencode(case.path.parent) + b"/\xff" + os.fsencode(case.path.name)))
            case.path.write_text(_lines(_rows_of(self.rng)))
        elif how == 5:
            case.path = case.path.with_name("x" * 300 + case.path.name)
        return case

    def _saved(self) -> Case:
        from datasets import Dataset

        rows = _rows_of(self.rng)
        case = self._case("saved datasets folder", "", None, _answers(rows))
        Dataset.from_list(rows).save_to_disk(str(case.path))
        how = self.rng.randrange(4)
        victim = self.rng.choice(sorted(case.path.iterdir()))
        if how == 1:
            victim.unlink()
        elif how:
            content = bytearray(victim.read_bytes())
            for _ in range(how):
                content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            victim.write_bytes(content)
            case.answers = None
        return case


KINDS: list[Callable[[Maker], Case]] = [
    Maker._line_ends,
    Maker._marks,
    Maker._joined,
    Maker._separators,
    Maker._pandas,
    Maker._encodings,
    Maker._encodings,
    Maker._one_line_of_another_encoding,
    Maker._structure,
    Maker._broken_json,
    Maker._values,
    Maker._conversations,
    Maker._text_columns,
    Maker._odd_columns,
    Maker._damaged,
    Maker._damaged,
    Maker._not_data,
    Maker._not_a_file,
    Maker._saved,
]


@dataclass
class Outcome:
    """How a command ended."""

    code: int | None
    """The exit code; None for a traceback."""
    errors: list[str]
    """Lines on stderr."""
    trace: str = ""


def check(case: Case, model: Path) -> Outcome:
    """Call `lorahydra data check` in this process."""
    from lorahydra.cli import main

    command = ["lorahydra", "data", "check", str(case.path), *case.options, "--model", str(model)]
    out, err = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with mock.patch.object(sys, "argv", command), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code: int | None = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            return Outcome(None, [], traceback.format_exc())
    err.flush()
    return Outcome(code, err.buffer.getvalue().decode().splitlines())


def run(command: Sequence[str], folder: Path) -> Outcome:
    """Run a real command."""
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=600)
    err = done.stderr.decode("utf-8", "replace")
    return Outcome(None if "Traceback" in err else done.returncode, err.splitlines(), err)


def wrong_in(outcome: Outcome, case: Case, *, log: bool = False) -> str | None:
    """The faults in how a command ended; log lines may come before the error."""
    if outcome.code is None:
        return "traceback: " + outcome.trace.strip().splitlines()[-1]
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}"
    told = [line for line in outcome.errors if not line.startswith("[transformers]")]
    if outcome.code == 2 and not told:
        return "refused without a word"
    name = re.sub(r"[^ -~]", "", case.path.name)[-20:]
    about = told[-1:] if log else told
    if outcome.code == 2 and not all(name in line or line.startswith("… and") for line in about):
        return f"an error without the file: {about[0][:200]}"
    return None


def dropped(case: Case, chat: Any, tokenizer: Any) -> list[str]:
    """Answers of the file that carry loss in no row of any split."""
    from lorahydra.config.compose import compose, literal
    from lorahydra.data import load_splits, tokenize

    config = compose(["data=local", f"data.train_file={literal(str(case.path))}", *case.options])
    splits = load_splits(config.data, config.seed)
    learned = []
    for split in (splits.train, splits.validation, splits.test):
        for row in tokenize(split, chat, max_length=2048, overlong="error") if split else ():
            learned.append(tokenizer.decode([token for token in row["labels"].tolist() if token != -100]))
    answers = Counter(text.removesuffix("<|im_end|>").strip() for text in learned)
    return [answer for answer in case.answers or [] if answer.strip() not in answers]


def main() -> int:
    """Make the files and try them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--trainings", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    from tests.conftest import make_tiny_model

    from lorahydra.config.schema import ModelConfig
    from lorahydra.data import ChatFormat
    from lorahydra.modeling.base import load_tokenizer
    from lorahydra.utils.files import cache_dir

    folder = Path(tempfile.mkdtemp(prefix="odd-files-"))
    (folder / "cache").mkdir()
    (folder / "cache" / "models").symlink_to(cache_dir() / "models")  # train.py needs the packaged encoder
    os.environ["LORAHYDRA_CACHE"] = str(folder / "cache")
    model = make_tiny_model(folder / "model")
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(model)))
    chat = ChatFormat(tokenizer)
    maker = Maker(folder, random.Random(given.seed))
    cases = [KINDS[number % len(KINDS)](maker) for number in range(given.files)]
    counts: dict[str, Counter[str]] = {}
    faults: list[str] = []

    def note(case: Case, what: str, fault: str | None) -> None:
        counts.setdefault(case.kind, Counter())[what] += 1
        if fault:
            faults.append(f"{case.kind}: {case.path.name[-40:]!r}: {fault}")

    for case in cases:
        outcome = check(case, model)
        note(case, "files", wrong_in(outcome, case))
        if outcome.code == 2 and (named := re.search(r"set (data\.encoding=[\w-]+)", " ".join(outcome.errors))):
            case.options.append(named[1])
            note(case, "encoding named", None)
            outcome = check(case, model)
            note(case, "read then", wrong_in(outcome, case))
        note(case, {0: "taken", 2: "refused"}.get(outcome.code or 0, "other"), None)
        if outcome.code == 0:
            lost = dropped(case, chat, tokenizer)
            note(
                case,
                "compared" if case.answers is not None else "not compared",
                f"dropped: {lost[:3]}" if lost else None,
            )
    for case in cases[:: max(1, len(cases) // max(1, given.processes))][: given.processes]:
        command = [str(Path(sys.executable).with_name("lorahydra")), "data", "check", str(case.path), *case.options]
        note(case, "process", wrong_in(run(command, folder), case))
    for case in cases[3 :: max(1, len(cases) // max(1, given.trainings))][: given.trainings]:
        overrides = [
            "experiment=demo",
            f"model.name_or_path={model}",
            "data=local",
            f"data.train_file={case.path}",
            *case.options,
        ]
        overrides += [
            "model.gguf_file=null",
            "evaluation.max_new_tokens=4",
            "evaluation.baseline=false",
            "training.max_steps=1",
        ]
        outcome = run([sys.executable, str(ROOT / "train.py"), *overrides], folder)
        note(case, "train.py", wrong_in(outcome, case, log=True))
    heads = ("files", "taken", "compared", "not compared", "refused", "encoding named", "process", "train.py")
    print(f"{'kind':32}" + "".join(f"{head:>15}" for head in heads))
    for kind, count in sorted(counts.items()):
        print(f"{kind:32}" + "".join(f"{count[head]:15}" for head in heads))
    total = sum((count for count in counts.values()), Counter())
    print(f"{'all':32}" + "".join(f"{total[head]:15}" for head in heads))
    print("\n".join(["", f"{len(faults)} faults", *faults]))
    shutil.rmtree(folder, ignore_errors=True)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
