"""`lorahydra judges agree`: a judge's scores beside people's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorahydra.cli.completing import files
from lorahydra.cli.sharing import log_to_terminal, table_lines, uri_option
from lorahydra.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lorahydra.data.labels import LabelledAnswer
    from lorahydra.evaluation.agreement import Agreement, Estimate
    from lorahydra.evaluation.weighting import Suggestion
    from lorahydra.trial.agree import AgreementReport

__all__ = ["agree"]

CHANCE = 0.5
"""Pairwise agreement of scores that have nothing to do with each other."""


@click.command(short_help="Compare a judge's scores with people's.")
@click.argument("labels", required=False, shell_complete=files)
@click.argument("overrides", nargs=-1)
@click.option(
    "--run",
    "run_ids",
    multiple=True,
    metavar="RUN_ID",
    help="Instead of LABELS: an MLflow run whose traces have people's feedback. May be repeated.",
)
@click.option("--ask", is_flag=True, help="Ask the judge even if the labels hold a judge's scores.")
@click.option("--columns", metavar="A=B,…", help="Names of columns, for example score=mark,answer=reply.")
@click.option("--encoding", metavar="NAME", default="utf-8", show_default=True, help="Encoding of LABELS.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@uri_option
def agree(
    labels: str | None,
    overrides: tuple[str, ...],
    run_ids: tuple[str, ...],
    ask: bool,
    columns: str | None,
    encoding: str,
    as_json: bool,
    uri: str | None,
) -> None:
    """Compare a judge's scores with those that people gave to the same answers.

    LABELS is a CSV, JSONL, JSON or Parquet file of 30 to 50 answers with the columns prompt, answer, score (on any
    numeric scale) and, if there are any, reference, a column for each criterion of the rubric, and judge_score. Without
    judge_score the judge is asked; OVERRIDES name it, for example judge=gemini judge.max_cost=1.
    """
    if labels is not None and "=" in labels and not Path(labels).exists():
        overrides, labels = (labels, *overrides), None
    if (labels is None) == (not run_ids):
        raise ConfigError("give either a file of labelled answers or --run RUN_ID")
    from lorahydra.config.compose import compose

    config = compose(overrides)
    names = _columns(columns)
    if labels is not None:
        found = _read(labels, list(config.judge.rubric.criteria), names, encoding)
    else:
        if others := sorted(names.keys() - {"score"}):
            raise ConfigError(f"--columns {others[0]}={names[others[0]]} is for LABELS: with --run, name only score")
        from lorahydra.adapters.find import store_address
        from lorahydra.trial.feedback import labels_of_runs

        found = labels_of_runs(run_ids, tracking_uri=store_address(uri), columns=names)
    log_to_terminal()
    # Imported here: torch takes seconds, but a mistake in the labels should be reported at once.
    from lorahydra.trial.agree import judge_agreement

    report = judge_agreement(found, config, ask=ask)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(report)))


def _columns(text: str | None) -> dict[str, str]:
    """Read `a=b,c=d`."""
    from lorahydra.data.labels import COLUMNS

    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    for name, _, column in pairs:
        if name.strip() not in COLUMNS or not column.strip():
            raise ConfigError(f"--columns {name}={column}: write NAME=COLUMN with NAME one of {', '.join(COLUMNS)}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _read(file: str, criteria: Sequence[str], columns: dict[str, str], encoding: str) -> list[LabelledAnswer]:
    from lorahydra.data.labels import read_labels

    try:
        return read_labels(file, criteria, columns=columns, encoding=encoding)
    except (DataError, ConfigError) as error:
        message = str(error).replace("data.encoding=", "--encoding ").replace("data.encoding", "--encoding")
        raise type(error)(message) from error


def _lines(report: AgreementReport) -> Iterator[str]:
    """The report as text."""
    yield f"{report.answers} answers with people's scores, compared with {report.judge}"
    if report.without_verdict:
        yield f"{report.without_verdict} more have no verdict and do not count"
    if report.calls:
        yield f"{report.calls} calls" + (f", cost {report.cost:.6f}" if report.cost else "")
    yield ""
    overall = report.overall
    rows = [("Spearman", overall.spearman), ("Kendall tau-b", overall.kendall), ("pairwise", overall.pairwise)]
    yield from table_lines([("AGREEMENT", "VALUE", "95 % INTERVAL"), *((name, *_cells(one)) for name, one in rows)])
    yield _verdict(overall)
    if report.criteria:
        yield ""
        yield from table_lines(_criteria(report.criteria))
    yield ""
    length = [("the judge's score", report.judge_and_length), ("people's score", report.people_and_length)]
    header = ("CORRELATION WITH LENGTH", "SPEARMAN", "95 % INTERVAL")
    yield from table_lines([header, *((name, *_cells(one)) for name, one in length)])
    yield ""
    if report.weight is not None:
        yield from _weight(report.weight)
    yield from report.remarks


def _cells(estimate: Estimate) -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "-", "-"
    return f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"


def _verdict(overall: Agreement) -> str:
    """What the pairwise agreement means, in a sentence."""
    pairwise = overall.pairwise
    ordered = f"Of two answers that people score differently, the judge prefers the same one in {pairwise.value:.0%}"
    if pairwise.low <= CHANCE:
        return f"{ordered}: this may be chance, so these labels do not show that the judge can be trusted."
    return f"{ordered} of the cases (95 % interval {pairwise.low:.0%} to {pairwise.high:.0%}; chance gives 50 %)."


def _criteria(criteria: dict[str, Agreement]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("CRITERION", "ANSWERS", "SPEARMAN", "KENDALL TAU-B", "PAIRWISE")]
    for name, one in criteria.items():
        pairs = [_cells(estimate) for estimate in (one.spearman, one.kendall, one.pairwise)]
        rows.append((name, str(one.count), *(f"{value} ({ends})" if value != "-" else "-" for value, ends in pairs)))
    return rows


def _weight(weight: Suggestion) -> Iterator[str]:
    gain = weight.gain
    measured = (
        f"pairwise agreement of combined {weight.agreement:.2f} with judge_weight={weight.present:g}; a weight chosen "
        f"by cross-validation changes it by {gain.value:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f})"
    )
    yield f"Weight of the judge in combined: {measured}."
    if weight.is_clear:
        yield (
            f"A weight of {weight.weight:.2f} fits these labels better: evaluation.judge_weight={weight.weight:.2f} "
            f"evaluation.bertscore_weight={1 - weight.weight:.2f}. Scores with other weights do not compare."
        )
    else:
        yield (
            f"These labels cannot tell which weight is better (the best one is between {weight.low:.2f} and "
            f"{weight.high:.2f}): keep {weight.present:g}."
        )
