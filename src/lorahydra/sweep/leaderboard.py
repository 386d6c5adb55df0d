"""A study's trials, best first: on the terminal, as CSV, and as the columns that every table of them has.

`objectives` has the names of the objectives, and `directions` has `maximize` or `minimize` for each; both are in the
order of `TrialRecord.values`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorahydra.names import SCORES, Score, State, score_info
from lorahydra.sweep.labels import duration, number, searched, short_names, value_text
from lorahydra.sweep.ranking import pareto_front, ranked
from lorahydra.sweep.trial_record import RaceScore, TrialRecord

__all__ = ["Column", "leaderboard_columns", "leaderboard_csv", "write_leaderboard"]

STYLES = {State.PRUNED: "yellow", State.FAILED: "red", State.RUNNING: "cyan"}
TIME = "time"
"""Name of the objective that is shown in the column for times."""
LONGEST_REASON = 80
LONGEST_HEADER = 9
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Characters that a spreadsheet takes for the start of a formula."""


def _value(record: TrialRecord, objectives: Sequence[str], name: str) -> float | None:
    """Value of one objective."""
    return dict(zip(objectives, record.values or (), strict=False)).get(name)


def _combined(record: TrialRecord, objectives: Sequence[str]) -> float | None:
    return record.combined if record.combined is not None else _value(record, objectives, Score.COMBINED)


def leaderboard_csv(records: Sequence[TrialRecord], directions: Sequence[str], objectives: Sequence[str]) -> str:
    """All trials, best first, as CSV with a header; complete trials have a rank that counts from 1."""
    params = searched(records)
    others = [name for name in objectives if name != Score.COMBINED]
    kept = ["combined_low", "combined_high", "bertscore_f1", "judge_score", "loss", "seconds"]
    metrics = _metrics(records)
    if any(record.forgetting is not None for record in records):
        kept.append("forgetting")
    if any(record.p_best is not None for record in records):
        kept += ["p_best", "in_set"]
    final = list(RaceScore.__dataclass_fields__) if any(record.final is not None for record in records) else []
    told = [*(f"final_{name}" for name in final), *(["is_winner"] if _has_winner(records) else [])]
    header = [
        "rank",
        "number",
        "state",
        *others,
        "combined",
        *kept,
        *metrics,
        *told,
        *params,
        "failure",
        "run_id",
        "folder",
    ]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(map(_cell, header))
    for rank, record in enumerate(ranked(records, directions), start=1):
        row: list[Any] = [rank if record.state is State.COMPLETE else None, record.number, record.state.value]
        row += [_value(record, objectives, name) for name in others]
        row += [_combined(record, objectives), *(getattr(record, name) for name in kept)]
        row += [record.metrics.get(name) for name in metrics]
        row += [getattr(record.final, name, None) for name in final]
        row += [record.is_winner] if "is_winner" in told else []
        row += [_exact(record.params[name]) if name in record.params else None for name in params]
        row += [" ".join(_why(record).split()) or None, record.run_id, record.folder]
        writer.writerow(map(_cell, row))
    return output.getvalue()


def _metrics(records: Sequence[TrialRecord]) -> list[str]:
    """Names of the chosen metrics."""
    return list(dict.fromkeys(name for record in records for name in record.metrics))


def _has_winner(records: Sequence[TrialRecord]) -> bool:
    return any(record.is_winner for record in records)


def _exact(value: Any) -> Any:
    # Numbers keep all their digits; the rest is written as in a config.
    return value if isinstance(value, int | float) and not isinstance(value, bool) else value_text(value)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


@dataclass(frozen=True)
class Column:
    """One column of a table of trials."""

    header: str
    cell: Callable[[TrialRecord], str]
    """The text of a trial's cell."""
    is_text: bool = False
    """Whether it holds words, which are wrapped, and not numbers."""
    param: str | None = None
    """The searched parameter that it shows."""


def leaderboard_columns(ordered: Sequence[TrialRecord], objectives: Sequence[str]) -> list[Column]:
    """The columns of a table of trials, best first: rank, trial, score or state, interval, others, time, parameters.

    The rank of the winner has a star.
    """
    ranks = {record.number: str(rank) for rank, record in enumerate(ordered, start=1) if record.values is not None}
    columns = [
        Column("#", lambda record: ("*" if record.is_winner else "") + ranks.get(record.number, "")),
        Column("trial", lambda record: str(record.number)),
        Column("combined", lambda record: _score(record, objectives)),
    ]
    if any(record.combined_low is not None for record in ordered):
        columns.append(Column("95 %", _interval))
    if any(record.final is not None for record in ordered):
        columns.append(Column("final", _final))
    if any(record.p_best is not None for record in ordered):
        columns.append(Column("P(best)", _p_best))
    if Score.JUDGE_SCORE not in objectives and any(record.judge_score is not None for record in ordered):
        columns.append(Column("judge", lambda record: _text(Score.JUDGE_SCORE, record.judge_score)))
    columns += [_metric(name) for name in _metrics(ordered)]
    if any(record.forgetting is not None for record in ordered):
        columns.append(
            Column("forgot", lambda record: "-" if record.forgetting is None else f"{record.forgetting:+.3f}")
        )
    columns += [_objective(name, objectives) for name in objectives if name not in (Score.COMBINED, TIME)]
    columns.append(Column(TIME, lambda record: duration(_value(record, objectives, TIME) or record.seconds)))
    return [*columns, *_params(ordered, [*(column.header for column in columns), "reason"])]


def _params(records: Sequence[TrialRecord], taken: Sequence[str]) -> list[Column]:
    return [_param(name, header) for name, header in short_names(searched(records), taken=taken).items()]


def _param(name: str, header: str) -> Column:
    return Column(header, lambda record: value_text(record.params[name]) if name in record.params else "-", param=name)


def _metric(name: str) -> Column:
    return Column(name, lambda record: score_info(name).text(record.metrics[name]) if name in record.metrics else "-")


def _objective(name: str, objectives: Sequence[str]) -> Column:
    return Column(name, lambda record: _text(name, _value(record, objectives, name)))


def _score(record: TrialRecord, objectives: Sequence[str]) -> str:
    if record.state is not State.COMPLETE:
        return record.state.value
    return _text(Score.COMBINED, _combined(record, objectives))


def _text(name: str, value: float | None) -> str:
    """The value of an objective."""
    if name == TIME:
        return duration(value)
    if value is None:
        return "-"
    return SCORES[Score(name)].text(value) if name in SCORES else number(value)


def _final(record: TrialRecord) -> str:
    return "" if record.final is None else _text(Score.COMBINED, record.final.combined)


def _interval(record: TrialRecord) -> str:
    ends = (record.combined_low, record.combined_high)
    return "" if None in ends else "–".join(f"{end:.3f}" for end in ends)


def _p_best(record: TrialRecord) -> str:
    """The probability; a trial that is clearly behind the best one has none worth showing."""
    return "" if record.p_best is None else f"{record.p_best:.2f}" if record.in_set else "-"


def _why(record: TrialRecord) -> str:
    """Why a trial has no result, or cannot win with it."""
    return record.failure or record.excluded or ""


def _reason(record: TrialRecord) -> str:
    reason = " ".join(_why(record).split())
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def write_leaderboard(
    console: Console, records: Sequence[TrialRecord], directions: Sequence[str], objectives: Sequence[str]
) -> None:
    """Print all trials except interrupted ones, best first; with several objectives, also the Pareto front."""
    shown = [record for record in ranked(records, directions) if record.state is not State.INTERRUPTED]
    columns = leaderboard_columns(shown, objectives)
    if any(_why(record) for record in shown):
        columns.append(Column("reason", _reason, is_text=True))
    title = "Trials, best first (* is the winner)" if _has_winner(shown) else "Trials, best first"
    _print(console, title, columns, shown, kept=3)
    if len(directions) > 1 and (front := pareto_front(records, directions)):
        columns = [Column("trial", lambda record: str(record.number))]
        columns += [_objective(name, objectives) for name in objectives]
        params = _params(front, [column.header for column in columns])
        _print(console, "Pareto front", [*columns, *params], front, kept=len(columns))


def _print(console: Console, title: str, columns: Sequence[Column], rows: Sequence[TrialRecord], kept: int) -> None:
    """Print a table in the widest form that fits; in the narrowest, all columns but the first `kept` share one."""
    forms = [_drawn(title, columns, rows, 1), _drawn(title, columns, rows, 0)]
    forms.append(_drawn(title, [*columns[:kept], _details(columns[kept:])], rows, 0))
    # Measured without a limit, because rich assumes that no column is wider than the terminal.
    without_limit = console.options.update(width=10_000)
    fitting = (form for form in forms if console.measure(form, options=without_limit).minimum <= console.width)
    console.print(next(fitting, forms[-1]))


def _details(columns: Sequence[Column]) -> Column:
    """One column in place of many: their cells with their headers, and texts on separate lines."""

    def cell(record: TrialRecord) -> str:
        cells = [(column, column.cell(record)) for column in columns]
        facts = [f"{column.header} {text}" for column, text in cells if not column.is_text and text not in ("", "-")]
        return "\n".join([", ".join(facts), *(text for column, text in cells if column.is_text and text)])

    return Column("details", cell, is_text=True)


def _drawn(title: str, columns: Sequence[Column], rows: Sequence[TrialRecord], room: int) -> Table:
    # Few lines and little padding: a study of five parameters has more than ten columns.
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, room, 0, 0))
    for column in columns:
        table.add_column(
            Text(_broken(column.header)),
            justify="left" if column.is_text else "right",
            no_wrap=not column.is_text,
            overflow="fold",
            min_width=14 if column.header == "reason" else None,
        )
    for record in rows:
        # As text, so that brackets in a value or an error are not taken for markup.
        table.add_row(*(Text(column.cell(record)) for column in columns), style=STYLES.get(record.state))
    return table


def _broken(header: str) -> str:
    """The header on several lines, cut after `_` and `.`, so that a long name does not make its column wide."""
    lines = [""]
    for part in header.replace("_", "_\0").replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > LONGEST_HEADER:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)
