"""`lorahydra reproduce`: run a recorded trial again and compare."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from lorahydra.cli.exits import EXIT_DIFFERENT
from lorahydra.cli.sharing import log_to_terminal, uri_option
from lorahydra.config.changes import PATHS
from lorahydra.config.compose import literal

if TYPE_CHECKING:
    from lorahydra.trial.reproduce import Compared, Recorded

__all__ = ["reproduce"]

SHOWN = 12
"""How many differences are shown before a run."""


@click.command(context_settings={"ignore_unknown_options": True}, short_help="Run a recorded trial again and compare.")
@click.argument("run_id")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@uri_option
@click.option("--to", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Output folder of the new run.")
@click.option("--tolerance", type=click.FloatRange(0), default=1e-3, show_default=True, help="Relative difference.")
@click.option("--check", is_flag=True, help="Only say what differs in settings, code, packages and machine.")
def reproduce(
    run_id: str, overrides: tuple[str, ...], uri: str | None, folder: Path | None, tolerance: float, check: bool
) -> int:
    """Run trial RUN_ID again with the configuration in MLflow, and compare losses and scores.

    OVERRIDES are keys that have another value now, for example data.train_file=there.jsonl. The exit code is 1 if a
    metric differs.
    """
    from lorahydra.adapters.find import store_address
    from lorahydra.trial.reproduce import read_recorded
    from lorahydra.trial.reproduce import reproduce as run_again

    overrides = tuple(_from_here(override) for override in overrides)
    recorded = read_recorded(run_id, tracking_uri=store_address(uri), overrides=overrides)
    _show_run(recorded)
    if check:
        return 0
    target = (folder or Path("outputs") / f"reproduced-{run_id[:8]}-{datetime.now():%Y%m%d-%H%M%S}").absolute()
    begun = recorded.environment.get("cwd")
    if begun is not None and Path(begun).is_dir():  # relative paths in the configuration begin there
        os.chdir(begun)
    log_to_terminal()
    compared = run_again(recorded, output_dir=target, tolerance=tolerance)
    return _show_comparison(compared)


def _show_run(recorded: Recorded) -> None:
    run = recorded.run
    click.echo(f"Run {run.run_id} ({run.name}), {recorded.config.model.name_or_path}, seed {recorded.config.seed}")
    for dataset in run.datasets:
        click.echo(f"  {dataset.context} data: {dataset.rows} rows of {dataset.source}, digest {dataset.digest}")
    if not recorded.environment:
        click.echo("The run has no record of its environment, so code, packages and machine cannot be compared.")
        return
    lines = recorded.differences()
    if not lines:
        click.echo("Settings, code, packages and machine are the same.")
        return
    click.echo("Different from the recorded run:")
    for line in lines[:SHOWN]:
        click.echo(f"  {line}")
    if len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more")


def _show_comparison(compared: Sequence[Compared]) -> int:
    """Print the table; the exit code says whether a metric is different."""
    from rich.table import Table

    from lorahydra.trial.reproduce import Agreement
    from lorahydra.utils.progress import console

    gaps = any(entry.agreement in (Agreement.CLOSE, Agreement.DIFFERENT) for entry in compared)
    table = Table("metric", "then", "now", *(["difference"] if gaps else []), "")
    table.columns[0].no_wrap = True
    for entry in compared:
        gap = "" if math.isnan(entry.difference) else f"{entry.difference:.3g}"
        cells = (entry.name, _number(entry.before), _number(entry.again), *([gap] if gaps else []))
        table.add_row(*cells, entry.agreement.value)
    console().print(table)
    counts = {kind: sum(entry.agreement is kind for entry in compared) for kind in Agreement}
    if counts[Agreement.EQUAL] == len(compared):
        click.echo(f"All {len(compared)} metrics are equal to the last digit.")
    else:
        click.echo(", ".join(f"{count} {kind.value}" for kind, count in counts.items() if count))
    return EXIT_DIFFERENT if counts[Agreement.DIFFERENT] or counts[Agreement.MISSING] else 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _from_here(override: str) -> str:
    """The override with absolute paths: the user's paths are relative to the current folder, not to the run's."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") not in PATHS or not value:
        return override
    files = _listed(value)
    if files:
        return f"{key}{equals}[{','.join(literal(_absolute(file)) for file in files)}]"
    return f"{key}{equals}{literal(_absolute(value))}" if Path(value).expanduser().exists() else override


def _listed(value: str) -> list[str]:
    """The files of a list; none if it is something else, or has a mistake, which is reported where it is read."""
    with suppress(yaml.YAMLError):
        parsed = yaml.safe_load(value)
        return [str(file) for file in parsed] if isinstance(parsed, list) else []
    return []


def _absolute(name: str) -> str:
    """The absolute path of a file or folder that exists; other names as they are."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
