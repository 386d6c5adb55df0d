"""The data check and its command: everything found in one go, readable and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.conftest import CHAT_TEMPLATE
from tests.data.conftest import Write, make_tokenizer, qa

from lorahydra.cli.data import data
from lorahydra.config.schema import DataConfig
from lorahydra.data import ChatFormat, DataReport, check
from lorahydra.errors import ConfigError, DataError


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(data, ["check", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def examine(path: Path, *, measure: bool = False, **options: Any) -> DataReport:
    chat = ChatFormat(make_tokenizer(template=CHAT_TEMPLATE)) if measure else None
    return check(DataConfig(train_file=str(path), **options), 0, chat=chat)


def test_good_data_passes(write: Write) -> None:
    report = examine(write("a.jsonl", qa(100)), measure=True)
    assert report.ok
    assert [split.name for split in report.splits] == ["train", "validation", "test"]
    assert sum(split.rows for split in report.splits) == 100
    assert report.sources[0].columns_used == {"question": "question", "answer": "answer"}
    for split in report.splits:
        assert split.lengths is not None
        assert sum(split.lengths.counts) == split.rows
        assert len(split.lengths.bin_edges) == len(split.lengths.counts) + 1
        assert split.lengths.min <= split.lengths.median <= split.lengths.p95 <= split.lengths.max
        assert split.over_limit == 0


def test_all_kinds_of_problems_are_found_in_one_go_and_the_rest_is_still_measured(write: Write) -> None:
    lines = [json.dumps(row).encode() for row in qa(60)]
    lines[3] = b'{"question": "caf\xe9", "answer": "A"}'
    lines[6] = b'{"question": '
    lines[8] = b'{"question": "Q", "answer": ""}'
    lines[9] = b'{"question": "Q", "answer": 5}'
    lines[59] = b'{"question": "Q"}'
    path = write("a.jsonl", b"\n".join(lines) + b"\n" + lines[0] + b"\n")
    report = examine(path, measure=True)
    assert not report.ok
    assert [(problem.line, problem.field) for problem in report.problems] == [
        (4, None),
        (7, None),
        (9, "answer"),
        (10, "answer"),
        (60, "answer"),
    ]
    [source] = report.sources
    assert (source.rows, source.problems, source.empty_answers, source.undecodable_lines) == (56, 5, 1, 1)
    assert sum(split.rows for split in report.splits) == 56
    assert sum(split.duplicates for split in report.splits) == 1
    assert all(split.lengths for split in report.splits)


def test_long_rows_are_problems_only_if_training_would_refuse_them(write: Write) -> None:
    path = write("a.jsonl", [*qa(20), {"question": "Q" * 500, "answer": "A"}])
    held = write("v.jsonl", qa(3, 100))
    settings = {"validation_file": str(held), "test_fraction": 0, "max_length": 400}
    refused = examine(path, measure=True, **settings)
    assert [str(problem) for problem in refused.problems] == [f"{path}:21: 522 tokens, over data.max_length=400"]
    assert refused.splits[0].over_limit == 1
    dropped = examine(path, measure=True, overlong="drop", **settings)
    assert dropped.ok
    assert any("1 of 21 rows are left out: longer than data.max_length=400" in text for text in dropped.warnings)


def test_a_source_without_a_valid_row_has_no_problem_but_its_rows(write: Write) -> None:
    report = examine(write("a.jsonl", [{"question": "Q", "answer": ""}] * 3), measure=True)
    assert (report.total_problems, report.splits) == (3, [])


def test_a_split_that_cannot_be_made_is_a_problem(write: Write) -> None:
    path = write("a.jsonl", [*qa(1), {"question": "Q"}])
    report = examine(path)
    assert report.total_problems == 2
    assert str(report.problems[1]).startswith(f"{path}: has 1 row, too few to split off a validation set")
    assert str(report.problems[1]).count(str(path)) == 1


def test_a_conversation_that_the_template_refuses_is_a_problem(write: Write) -> None:
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    tricky = write("b.jsonl", [{"messages": turns}])
    rule = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    refusing = ChatFormat(make_tokenizer(template=rule + CHAT_TEMPLATE))
    report = check(DataConfig(train_file=str(tricky), validation_file="demo"), 0, chat=refusing)
    assert [str(problem) for problem in report.problems] == [
        f"{tricky}:1: the model's chat template refuses this conversation (no system): change it"
    ]


def test_lengths_without_a_tokenizer_are_said_to_be_missing(write: Write) -> None:
    report = examine(write("a.jsonl", qa(30)))
    assert report.splits[0].lengths is None
    assert any("no token lengths" in warning for warning in report.warnings)


def test_the_report_is_json(write: Write) -> None:
    report = examine(write("a.jsonl", [*qa(30), {"question": "Q"}]), measure=True)
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert value["ok"] is False
    assert value["problems"][0]["line"] == 31
    assert value["splits"][0]["lengths"]["counts"]


class TestCommand:
    def test_good_data_exits_with_0_and_shows_what_was_used(self, write: Write) -> None:
        path = write("a.jsonl", [{**row, "topic": "sums"} for row in qa(40)])
        result = run(path)
        assert result.exit_code == 0
        for text in (
            f"{path}\n",
            "question, answer (question_answer)",
            "columns ignored  topic",
            "ready to train on",
        ):
            assert text in result.stdout
        assert result.stderr == ""

    def test_each_problem_is_one_line_and_the_exit_code_is_2(self, write: Write) -> None:
        path = write("a.jsonl", [*qa(20), *[{"question": "Q", "answer": 1}] * 30])
        result = run(path)
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        assert lines[0] == f"{path}:21: field 'answer': holds the number 1 where text is expected"
        assert len(lines) == 21
        assert lines[-1] == "… and 10 more"
        assert "result: 30 problems" in result.stdout

    def test_lengths_are_measured_with_a_models_tokenizer(self, write: Write, tiny_model: Path) -> None:
        path = write("a.jsonl", qa(40))
        result = run(path, "--model", tiny_model, "--max-length", 43)
        assert result.exit_code == 2
        assert "over the limit" in result.stdout
        assert "#" in result.stdout
        assert "tokens, over data.max_length=43" in result.stderr
        assert run(path, "--model", tiny_model).exit_code == 0

    def test_files_mapping_and_format_are_options(self, write: Write) -> None:
        train = write("a.jsonl", [{"q": n, "a": a} for n, a in zip("abcdef", "uvwxyz", strict=True)])
        held = write("v.csv", "q,a\nx,1\n")
        arguments = (train, "--validation", held, "--test", held, "--columns", "question=q, answer=a")
        result = run(*arguments, "--format", "question_answer", "--seed", 7, "--json")
        assert result.exit_code == 0
        value = json.loads(result.stdout)
        assert [(split["name"], split["rows"]) for split in value["splits"]] == [
            ("train", 6),
            ("validation", 1),
            ("test", 1),
        ]
        assert value["leakage"][2] == {
            "of": "test",
            "into": "validation",
            "same_prompt": 1,
            "same_example": 1,
        }
        assert value["sources"][0]["columns_used"] == {"question": "q", "answer": "a"}

    def test_the_encoding_is_an_option_or_a_key(self, write: Write) -> None:
        path = write("a.csv", ("question,answer\n" + "".join(f"Вопрос {n},Ответ\n" for n in range(9))).encode("cp1251"))
        assert run(path).exit_code == 2
        assert run(path, "--encoding", "windows-1251").exit_code == 0
        assert run(path, "data.encoding=windows-1251").exit_code == 0
        assert "write data.KEY=VALUE" in run(path, "lora.r=8").stderr

    def test_json_output_is_only_json_also_with_problems(self, write: Write) -> None:
        result = run(write("a.jsonl", [*qa(20), {"question": "Q"}]), "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["total_problems"] == 1

    @pytest.mark.parametrize("columns", ["question", "question=", "=q", "nonsense=q"])
    def test_a_broken_mapping_is_refused(self, write: Write, columns: str) -> None:
        result = run(write("a.jsonl", qa(2)), "--columns", columns)
        assert result.exit_code == 2
        assert "--columns" in result.stderr
        assert "question=q,answer=a" in result.stderr

    def test_what_cannot_be_read_at_all_is_left_to_the_command_line(self, write: Write) -> None:
        with pytest.raises(DataError, match="no such file"):
            run("nope.jsonl")
        with pytest.raises(ConfigError, match=r"data\.format=poem is not allowed"):
            run(write("a.jsonl", qa(2)), "--format", "poem")

    def test_the_demo_is_checked_by_name(self) -> None:
        result = run("demo")
        assert result.exit_code == 0
        assert "demo/validation.jsonl" in result.stdout


class TestOddRows:
    """Rows that hold what chat templates put around turns are named, not refused."""

    def warnings(self, write: Write, rows: list[dict[str, str]], **options: Any) -> list[str]:
        path = write("a.jsonl", [*qa(80), *rows])
        chat = ChatFormat(make_tokenizer(template=options.pop("template", CHAT_TEMPLATE)), **options)
        reports = [check(DataConfig(train_file=str(path)), 0, chat=chat) for _ in range(2)]
        first, cached = ([text for text in report.warnings if "duplicates" not in text] for report in reports)
        assert reports[0].ok
        assert first == cached
        return first

    def counted(self, warnings: list[str]) -> int:
        """How many rows they are about, such as 3 of `train: 3 of 9 rows`."""
        return sum(int(warning.split(" of ")[0].rpartition(" ")[2]) for warning in warnings)

    def test_rendered_conversations(self, write: Write) -> None:
        rows = [
            {"question": f"<|im_start|>user\nq{n}<|im_end|>\n<|im_start|>assistant\n", "answer": f"a{n}<|im_end|>"}
            for n in range(30)
        ]
        messages = self.warnings(write, rows)
        assert all("a chat template begins a turn" in warning for warning in messages)
        assert self.counted(messages) == 30
        lines = [int(warning.partition("a.jsonl:")[2].partition(")")[0]) for warning in messages]
        assert min(lines) == 81

    @pytest.mark.parametrize(("kind", "meaning"), [("text", "they stay text"), ("control", "they are control tokens")])
    def test_names_of_control_tokens(self, write: Write, kind: str, meaning: str) -> None:
        rows = [{"question": f"q{n}", "answer": f"part {n}<|im_end|> part"} for n in range(30)]
        messages = self.warnings(write, rows, special_tokens=kind)
        assert self.counted(messages) == 30
        assert all("names of the model's control tokens" in warning and meaning in warning for warning in messages)

    def test_answers_with_the_text_that_ends_them(self, write: Write) -> None:
        rows = [{"question": f"q{n}", "answer": f"a{n}\n### User: b"} for n in range(30)]
        messages = self.warnings(write, rows, template=None)
        assert any("text which ends an answer" in warning for warning in messages)

    def test_system_messages_that_the_template_loses(self, write: Write) -> None:
        template = CHAT_TEMPLATE.replace("in messages %}", "in messages if m['role'] != 'system' %}")
        messages = self.warnings(write, [], template=template, system_prompt="Be brief.")
        assert self.counted(messages) == 80
        assert all("that the model's chat template leaves out" in warning for warning in messages)

    def test_ordinary_rows_say_nothing(self, write: Write) -> None:
        assert self.warnings(write, [{"question": "a < b | c >", "answer": "<p>x</p>"}]) == []
