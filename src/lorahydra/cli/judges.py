"""`lorahydra judges …`: list the judges, check one, compare one with people, and judge answers again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorahydra.cli.agreeing import agree
from lorahydra.cli.completing import judge_names
from lorahydra.cli.sharing import log_to_terminal, show_table
from lorahydra.config.judge_registry import (
    PANEL,
    choosable_judges,
    install_command,
    is_built_in,
    registered_judges,
    sdk_package,
    sdk_version,
)
from lorahydra.errors import JudgeNotFoundError, JudgeSetupError, LorahydraError

if TYPE_CHECKING:
    from lorahydra.config.judge import JudgeConfig

__all__ = ["judges"]


@click.group(short_help="List the judges, check one, compare it with people.")
def judges() -> None:
    """The LLM judges that score answers."""


judges.add_command(agree)


@judges.command("list", short_help="Show the judges, their models, keys and SDKs.")
def list_judges() -> None:
    """Show the judges, the model that each one asks, and whether it has its key and SDK."""
    together = (PANEL, " + ".join(_config(PANEL, ()).judges), "those of its judges", "those of its judges")
    show_table([("NAME", "MODEL", "KEY", "SDK"), *(_row(name) for name in registered_judges()), together])


def _row(name: str) -> tuple[str, str, str, str]:
    config = _config(name, ())
    variables = " or ".join(config.key_names)
    try:
        key = f"{variables} is {'set' if config.api_key() else 'not set'}" if variables else "not needed"
    except JudgeSetupError as error:
        key = str(error)
    return name, config.model or "-", key, _sdk(name)


def _sdk(name: str) -> str:
    """Whether the SDK is installed, without importing it."""
    package = sdk_package(name)
    if package is None:
        return "built in" if is_built_in(name) else "your own"
    version = sdk_version(name)
    return f"{package} {version}" if version else f"missing: {install_command(name)}"


@judges.command(short_help="Let a judge score four fixed answers.")
@click.argument("name", shell_complete=judge_names)
@click.argument("overrides", nargs=-1)
def check(name: str, overrides: tuple[str, ...]) -> None:
    """Let the judge NAME, or each judge of a panel, score four fixed answers, and say whether it can tell them apart.

    OVERRIDES are those of train.py, for example judge.base_url=http://127.0.0.1:8000/v1.
    """
    config = _config(name, overrides)
    errors = [error for label, one in config.asked.items() if (error := _check(label, one)) is not None]
    for error in errors[:-1]:
        click.echo(f"lorahydra: {error}", err=True)
    if errors:
        raise errors[-1]


def _check(label: str, config: JudgeConfig) -> LorahydraError | None:
    """Test one judge, show its scores, and return why it cannot be used."""
    from lorahydra.judges import SingleSession, make_judge, self_test

    try:
        session = SingleSession(config, make_judge(config), None)
    except LorahydraError as error:
        return error
    test = self_test(session)
    calls = test.judgement.calls
    if test.judgement.verdicts[0]:
        [verdict] = test.judgement.verdicts[0]
        scores = ", ".join(f"{criterion} {score:g}" for criterion, score in verdict.scores.items())
        head = "ok: " if test.error is None else ""
        click.echo(f"{head}{label} answered as {verdict.model} in {verdict.latency:.2f} s")
        click.echo(f"    {verdict.score:.0f} of 100 for a right answer ({scores})")
        others = [f"{_number(score)} for {kind}" for kind, score in list(test.scores.items())[1:]]
        click.echo(f"    {', '.join(others)}")
        sent, received = sum(call.prompt_tokens for call in calls), sum(call.completion_tokens for call in calls)
        cost = sum(call.cost for call in calls)
        click.echo(f"    {sent} tokens sent, {received} received" + (f", cost {cost:.6f}" if cost else ""))
    return test.error


def _number(score: float | None) -> str:
    return "no verdict" if score is None else f"{score:.0f}"


def _config(name: str, overrides: tuple[str, ...]) -> JudgeConfig:
    from lorahydra.config.compose import compose

    if name not in choosable_judges():
        raise JudgeNotFoundError(name, registered_judges())
    return compose([f"judge={name}", *overrides]).judge


@judges.command("rejudge", short_help="Judge the answers of a trial again.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("overrides", nargs=-1)
@click.option("--uri", metavar="URI", help="Address of the MLflow store, if it has moved or has a password.")
@click.option("--storage", metavar="URL", help="Store of the trial's study, if it has moved or has a password.")
def judge_again(folder: Path, overrides: tuple[str, ...], uri: str | None, storage: str | None) -> None:
    """Judge the answers of a trial that failed because of its judge, and complete its MLflow run.

    DIR is the trial's output folder, or one that holds several. Nothing is trained or generated again, and no verdict
    is asked for twice. A trial that belongs to a study counts there from then on. OVERRIDES are judge.KEY=VALUE of keys
    that do not change verdicts, for example judge.max_cost=2.
    """
    from lorahydra.sweep.rejudge_trial import rejudge_trial
    from lorahydra.trial.finalists import find_trials
    from lorahydra.trial.summary import write_scores
    from lorahydra.utils.progress import console

    log_to_terminal()
    for trial in find_trials([folder]):
        scores = rejudge_trial(trial, overrides=overrides, tracking_uri=uri, storage=storage)
        if scores is not None:
            write_scores(console(), scores)


@judges.command("finalists", short_help="Judge the best trials on all examples and rank them.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--uri", metavar="URI", help="Address of the MLflow store, if it has moved or has a password.")
@click.option("--set", "overrides", multiple=True, metavar="judge.KEY=VALUE", help="For example judge.repeats=3.")
def rank_finalists(folders: tuple[Path, ...], uri: str | None, overrides: tuple[str, ...]) -> None:
    """Judge the best trials on all validation examples and say which one is best.

    DIR is the output folder of a trial, or one that holds those of several, such as multirun/…. The best
    judge.finalists by their score so far are taken, and each example is judged judge.repeats times.
    """
    from lorahydra.trial.finalists import find_trials, judge_finalists

    ranking = judge_finalists(find_trials(folders), overrides=overrides, tracking_uri=uri)
    for place, finalist in enumerate(ranking, start=1):
        combined, verdicts = finalist.tuned.combined, finalist.tuned.verdicts
        judged = f", LLM judge {verdicts.score:.2f} on {verdicts.judged}" if verdicts and verdicts.score else ""
        click.echo(
            f"{place}. {finalist.trial.folder}: combined {combined.mean:.4f} "
            f"({combined.low:.4f} to {combined.high:.4f}){judged}"
        )
