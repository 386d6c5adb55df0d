"""The shipped demo dataset keeps the promises of its README: format, closed sets, balance, no leakage."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from typing import NamedTuple

import pytest

DEMO = files("lorahydra") / "data" / "demo"
ROWS = {"train": 144, "validation": 32, "test": 32}
LEAD = "Ticket this message:\n"
VERBS = {
    "billing": {"Refund", "Correct", "Explain"},
    "delivery": {"Trace", "Send", "Replace", "Redirect"},
    "fault": {"Restore", "Repair", "Replace", "Investigate"},
    "account": {"Secure", "Reset", "Update", "Add", "Remove"},
    "booking": {"Book", "Move"},
    "cancellation": {"Cancel", "Close"},
    "question": {"Explain", "Confirm", "Send"},
    "complaint": {"Apologise"},
}
PRIORITIES = {"urgent", "high", "normal", "low"}
TICKET = re.compile(
    r"Category: (?P<category>[a-z]+)\n"
    r"Priority: (?P<priority>[a-z]+)\n"
    r"Product: (?P<product>[^\s.][^\n.]*[^\s.])\n"
    r"Summary: (?P<summary>[A-Z][^\n.]*\.)\n"
    r"Next step: (?P<next_step>[A-Z][^\n.]*\.)"
)


class Row(NamedTuple):
    split: str
    line: int
    message: str
    ticket: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The message without case and punctuation."""
        return re.findall(r"[a-z0-9']+", self.message.lower())


def read(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / f"{split}.jsonl").read_text("utf-8").splitlines()]


def parse(split: str, line: int, raw: dict[str, str]) -> Row:
    assert set(raw) == {"prompt", "completion"}, f"{split}:{line}"
    assert raw["prompt"].startswith(LEAD), f"{split}:{line}"
    match = TICKET.fullmatch(raw["completion"])
    assert match, f"{split}:{line}: {raw['completion']!r}"
    return Row(split, line, raw["prompt"].removeprefix(LEAD), match.groupdict())


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [parse(split, number, raw) for split in ROWS for number, raw in enumerate(read(split), start=1)]


def offenders(rows: list[Row]) -> list[str]:
    return [f"{row.split}:{row.line}" for row in rows]


@pytest.mark.parametrize("split", ROWS)
def test_file_is_plain_jsonl_of_the_documented_size(split: str) -> None:
    content = (DEMO / f"{split}.jsonl").read_bytes()
    assert content.endswith(b"}\n")
    assert b"\r" not in content
    assert not content.startswith(b"\xef\xbb\xbf")
    assert content.count(b"\n") == ROWS[split] == len(read(split))


def test_labels_come_from_the_closed_sets(rows: list[Row]) -> None:
    assert {row.ticket["category"] for row in rows} == set(VERBS)
    assert {row.ticket["priority"] for row in rows} == PRIORITIES


def test_next_step_starts_with_a_verb_of_its_category(rows: list[Row]) -> None:
    wrong = [row for row in rows if row.ticket["next_step"].split()[0] not in VERBS[row.ticket["category"]]]
    assert offenders(wrong) == []


def test_next_step_says_now_exactly_when_urgent(rows: list[Row]) -> None:
    wrong = [row for row in rows if row.ticket["next_step"].endswith(" now.") != (row.ticket["priority"] == "urgent")]
    assert offenders(wrong) == []


@pytest.mark.parametrize(("part", "limit"), [("product", 4), ("summary", 12), ("next_step", 8)])
def test_ticket_lines_are_short(rows: list[Row], part: str, limit: int) -> None:
    assert offenders([row for row in rows if len(row.ticket[part].split()) > limit]) == []


def test_messages_are_15_to_60_words_and_vary(rows: list[Row]) -> None:
    lengths = [len(row.message.split()) for row in rows]
    assert min(lengths) >= 15
    assert max(lengths) <= 60
    assert sum(length < 25 for length in lengths) >= 20
    assert sum(length > 45 for length in lengths) >= 20
    assert all(row.message == row.message.strip() for row in rows)


@pytest.mark.parametrize("split", ROWS)
def test_any_first_rows_are_balanced_over_categories(rows: list[Row], split: str) -> None:
    categories = [row.ticket["category"] for row in rows if row.split == split]
    blocks = [categories[start : start + len(VERBS)] for start in range(0, len(categories), len(VERBS))]
    assert all(sorted(block) == sorted(VERBS) for block in blocks)


@pytest.mark.parametrize("split", ROWS)
def test_every_priority_is_well_represented(rows: list[Row], split: str) -> None:
    counts = Counter(row.ticket["priority"] for row in rows if row.split == split)
    assert set(counts) == PRIORITIES
    assert min(counts.values()) >= 0.1 * ROWS[split]
    assert max(counts.values()) <= 0.5 * ROWS[split]


def test_no_message_is_repeated_or_nearly_repeated(rows: list[Row]) -> None:
    """No two messages, in one split or across two, share a tenth of the shorter one's four-word runs."""
    runs = [(row, {tuple(row.words[start : start + 4]) for start in range(len(row.words) - 3)}) for row in rows]
    alike = [
        (offenders([a]), offenders([b]))
        for (a, runs_a), (b, runs_b) in combinations(runs, 2)
        if len(runs_a & runs_b) >= 0.1 * min(len(runs_a), len(runs_b))
    ]
    assert alike == []


def test_no_ticket_is_repeated(rows: list[Row]) -> None:
    seen = Counter(row.ticket["summary"].lower() for row in rows)
    assert [summary for summary, count in seen.items() if count > 1] == []


def test_nothing_in_it_can_reach_a_real_person(rows: list[Row]) -> None:
    texts = [f"{row.message}\n" + "\n".join(row.ticket.values()) for row in rows]
    for text in texts:
        assert all(domain == "example.com" for domain in re.findall(r"@(\S*\w)", text)), text
        assert not re.search(r"https?:|www\.", text), text
        assert not re.search(r"\d{6,}|\d[\d ()/-]{7,}\d", text), text


def test_readme_documents_the_labels() -> None:
    readme = (DEMO / "README.md").read_text("utf-8")
    for category, verbs in VERBS.items():
        (line,) = (line for line in readme.splitlines() if line.startswith(f"| `{category}` |"))
        assert {verb.strip() for verb in line.rstrip("| ").rsplit("|", 1)[1].split(",")} == verbs
    for priority in PRIORITIES:
        assert re.search(rf"^\d\. `{priority}`: ", readme, flags=re.MULTILINE)
    for split, count in ROWS.items():
        assert f"| `{split}.jsonl` | {count} |" in readme
    assert "Apache-2.0" in readme
