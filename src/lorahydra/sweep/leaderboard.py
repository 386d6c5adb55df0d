"""A study's trials, best first: on the terminal and as CSV.

Objectives are named by `objectives` and go `maximize` or `minimize` by `directions`, both in the order of
`TrialRecord.values`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lorahydra.names import Score, State
from lorahydra.sweep.labels import duration, number, searched, short_names, value_text
from lorahydra.sweep.trial_record import TrialRecord

__all__ = ["leaderboard_csv", "leaderboard_table", "pareto_front", "pareto_table", "ranked", "write_leaderboard"]

SIGNS = {"maximize": -1.0, "minimize": 1.0}
STATES = (State.COMPLETE, State.PRUNED, State.FAILED, State.RUNNING, State.INTERRUPTED)
STYLES = {State.PRUNED: "yellow", State.FAILED: "red", State.RUNNING: "cyan"}
TIME = "time"
"""Name of the objective that is shown in the column for times."""
LONGEST_REASON = 80
LONGEST_HEADER = 10
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""


def ranked(records: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """All trials: complete ones best first, then pruned by their last loss, failed, running and interrupted ones.

    With several objectives the Pareto front comes first; it and the rest are ordered by the first objective. Trials
    that are equal are ordered by number, and a NaN is worse than any number.
    """
    front = {record.number for record in pareto_front(records, directions)}

    def place(record: TrialRecord) -> tuple[int, bool, bool, float, int]:
        if record.state is State.COMPLETE:
            losses = _losses(record, directions)
            loss = losses[0] if losses else None
        else:
            loss = record.loss if record.state is State.PRUNED else None
        # Infinity is a number, and better than no number at all.
        unknown = loss is None or math.isnan(loss)
        known = 0.0 if loss is None or unknown else loss
        return STATES.index(record.state), record.number not in front, unknown, known, record.number

    return sorted(records, key=place)


def pareto_front(records: Sequence[TrialRecord], directions: Sequence[str]) -> list[TrialRecord]:
    """Complete trials that no other beats in one objective without being worse in another, by the first objective.

    With one objective these are the best trial and those equal to it.
    """
    points = [
        (losses, record)
        for record in records
        if record.state is State.COMPLETE and (losses := _losses(record, directions)) is not None
    ]
    front = [(losses, record) for losses, record in points if not any(_dominates(other, losses) for other, _ in points)]
    return [record for _, record in sorted(front, key=lambda point: (point[0][0], point[1].number))]


def _losses(record: TrialRecord, directions: Sequence[str]) -> tuple[float, ...] | None:
    """Values turned so that less is better, or None where they cannot be compared."""
    if record.values is None or len(record.values) != len(directions) or any(map(math.isnan, record.values)):
        return None
    return tuple(SIGNS[direction] * value for direction, value in zip(directions, record.values, strict=True))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _value(record: TrialRecord, objectives: Sequence[str], name: str) -> float | None:
    """Value of one objective."""
    if record.values is None or name not in objectives:
        return None
    index = list(objectives).index(name)
    return record.values[index] if index < len(record.values) else None


def _combined(record: TrialRecord, objectives: Sequence[str]) -> float | None:
    return record.combined if record.combined is not None else _value(record, objectives, Score.COMBINED)


def leaderboard_csv(records: Sequence[TrialRecord], directions: Sequence[str], objectives: Sequence[str]) -> str:
    """All trials, best first, as CSV with a header; complete trials have a rank that counts from 1."""
    params = searched(records)
    others = [name for name in objectives if name != Score.COMBINED]
    header = ["rank", "number", "state", *others]
    header += ["combined", "combined_low", "combined_high", "bertscore_f1", "judge_score", "loss", "seconds"]
    header += [*params, "failure", "run_id", "folder"]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    for rank, record in enumerate(ranked(records, directions), start=1):
        row: list[Any] = [rank if record.state is State.COMPLETE else None, record.number, record.state.value]
        row += [_value(record, objectives, name) for name in others]
        row += [_combined(record, objectives), record.combined_low, record.combined_high]
        row += [record.bertscore_f1, record.judge_score, record.loss, record.seconds]
        row += [_exact(record.params[name]) if name in record.params else None for name in params]
        row += [record.failure and " ".join(record.failure.split()), record.run_id, record.folder]
        writer.writerow([_cell(value) for value in row])
    return output.getvalue()


def _exact(value: Any) -> Any:
    # Numbers keep all their digits; the rest is written as in a config.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else value_text(value)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


@dataclass(frozen=True)
class _Column:
    """One column of a table, and how it is filled."""

    header: str
    cell: Callable[[int, TrialRecord], str | Text]
    right: bool = True
    wraps: bool = False
    least: int | None = None


class _FittingTable(Table):
    """A table that gives way to a narrower form of itself where the terminal has too few columns for it."""

    narrower: Table | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Measured without a limit: a column's least width is never taken to be more than the whole terminal.
        needed = super().__rich_measure__(console, options.update_width(10_000)).minimum
        if self.narrower is not None and needed > options.max_width:
            yield self.narrower
        else:
            yield from super().__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        least = super().__rich_measure__(console, options)
        return least if self.narrower is None else Measurement(1, least.maximum)


def leaderboard_table(
    records: Sequence[TrialRecord],
    directions: Sequence[str],
    objectives: Sequence[str],
    *,
    limit: int | None = None,
) -> Table:
    """The trials, best first, less those that were interrupted; on a narrow terminal parameters share one column.

    Args:
        records: The trials, in any order.
        directions: One per objective.
        objectives: Their names.
        limit: How many trials to show; the table says how many are left out.
    """
    shown = [record for record in ranked(records, directions) if record.state is not State.INTERRUPTED]
    rows, hidden = shown[:limit], len(shown[limit:]) if limit is not None else 0
    title = "Trials, best first"
    tables = [_table(title, columns, rows) for columns in _layouts(rows, objectives)]
    for table, narrower in pairwise(tables):
        table.narrower = narrower
    if hidden:
        for table in tables:
            table.caption = f"{hidden} more {'trial' if hidden == 1 else 'trials'} not shown"
    return tables[0]


def pareto_table(records: Sequence[TrialRecord], directions: Sequence[str], objectives: Sequence[str]) -> Table:
    """The Pareto front, by the first objective: every objective and parameter of each trial."""
    front = pareto_front(records, directions)
    short = short_names(searched(front), taken=["trial", *objectives])
    trial = _Column("trial", lambda _, record: str(record.number))
    values = [_objective(name, objectives) for name in objectives]
    wide = _table("Pareto front", [trial, *values, *map(_param, short, short.values())], front)
    wide.narrower = narrow = _table("Pareto front", [trial, *values, _all_params(short, least=24)], front)
    narrow.narrower = _table("Pareto front", [trial, *values, _all_params(short)], front)
    return wide


def _layouts(rows: Sequence[TrialRecord], objectives: Sequence[str]) -> list[list[_Column]]:
    """Columns of the table from the widest form to the narrowest."""
    head = [
        _Column("#", lambda rank, record: str(rank) if record.state is State.COMPLETE else ""),
        _Column("trial", lambda _, record: str(record.number)),
    ]
    state = _Column("state", lambda _, record: Text(record.state, STYLES.get(record.state, "")), right=False)
    scores = [_objective(name, objectives) for name in objectives if name not in (Score.COMBINED, TIME)]
    if any(record.judge_score is not None for record in rows) and Score.JUDGE_SCORE not in objectives:
        scores.insert(0, _Column("judge", lambda _, record: _fixed(record.judge_score, 2)))
    time = _Column(TIME, lambda _, record: duration(_seconds(record, objectives)))
    names = searched(rows)
    fixed = [*(column.header for column in (*head, state, *scores, time)), "combined", "reason"]
    short = short_names(names, taken=fixed)
    params = [_param(name, header) for name, header in short.items()]
    failed = any(record.failure for record in rows)

    def reason(least: int) -> list[_Column]:
        return [_Column("reason", lambda _, record: _reason(record), right=False, wraps=True, least=least)] * failed

    beside, below = _score(objectives, " "), _score(objectives, "\n")
    merged = _score(objectives, "\n", or_state=True)
    return [
        [*head, state, beside, *scores, time, *params, *reason(24)],
        [*head, state, below, *scores, time, *params, *reason(14)],
        [*head, merged, *scores, time, *params, *reason(14)],
        [*head, merged, *scores, time, _all_params(short, reasons=True, least=24)],
        [*head, merged, _all_params(short, reasons=True)],
    ]


def _table(title: str, columns: Sequence[_Column], rows: Sequence[TrialRecord]) -> _FittingTable:
    # Few lines and little padding: a study of five parameters has more than ten columns.
    table = _FittingTable(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(
            Text(_broken(column.header)),
            justify="right" if column.right else "left",
            no_wrap=not column.wraps,
            overflow="fold",
            min_width=column.least,
        )
    for rank, record in enumerate(rows, start=1):
        table.add_row(*(_plain(column.cell(rank, record)) for column in columns))
    return table


def _plain(cell: str | Text) -> Text:
    # As text, so that brackets in a value or an error are not taken for markup.
    return cell if isinstance(cell, Text) else Text(cell)


def _broken(header: str) -> str:
    """The header on several lines, cut after `_` and `.`, so that a long name does not make its column wide."""
    lines = [""]
    for part in header.replace("_", "_\0").replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > LONGEST_HEADER:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)


def _score(objectives: Sequence[str], separator: str, *, or_state: bool = False) -> _Column:
    def cell(_: int, record: TrialRecord) -> Text:
        if or_state and record.state is not State.COMPLETE:
            return Text(record.state, STYLES.get(record.state, ""))
        text = Text(_fixed(_combined(record, objectives), 4))
        if record.combined_low is not None and record.combined_high is not None:
            text.append(f"{separator}{record.combined_low:.2f}–{record.combined_high:.2f}", "dim")
        return text

    return _Column("combined", cell, right=False)


def _objective(name: str, objectives: Sequence[str]) -> _Column:
    def cell(_: int, record: TrialRecord) -> str:
        value = _value(record, objectives, name)
        if name == Score.COMBINED:
            return _fixed(value, 4)
        if name == TIME:
            return duration(value)
        return "-" if value is None else number(value)

    return _Column(name, cell)


def _param(name: str, header: str) -> _Column:
    return _Column(header, lambda _, record: value_text(record.params[name]) if name in record.params else "-")


def _all_params(short: dict[str, str], *, reasons: bool = False, least: int | None = None) -> _Column:
    """One column for all parameters, and for why a trial failed."""

    def cell(_: int, record: TrialRecord) -> str:
        pairs = [f"{short[name]} {value_text(value)}" for name, value in record.params.items()]
        reason = _reason(record) if reasons else ""
        return ", ".join(pairs) + (f"\n{reason}" if reason else "")

    return _Column("parameters", cell, right=False, wraps=True, least=least)


def _seconds(record: TrialRecord, objectives: Sequence[str]) -> float | None:
    value = _value(record, objectives, TIME)
    return record.seconds if value is None else value


def _reason(record: TrialRecord) -> str:
    reason = " ".join((record.failure or "").split())
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_leaderboard(
    console: Console, records: Sequence[TrialRecord], directions: Sequence[str], objectives: Sequence[str]
) -> None:
    """Print the trials, best first, and with several objectives the Pareto front."""
    console.print(leaderboard_table(ranked(records, directions), directions, objectives))
    if len(directions) > 1 and pareto_front(records, directions):
        console.print(pareto_table(records, directions, objectives))
