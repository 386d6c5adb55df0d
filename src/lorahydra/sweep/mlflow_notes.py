"""What MLflow's UI says in words: the leaderboard on the study's page, and where a registered model comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from lorahydra.config.schema import ExperimentConfig
from lorahydra.names import Score, State, Tag
from lorahydra.sweep.labels import duration, searched, short_names, value_text
from lorahydra.sweep.leaderboard import ranked
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.trial.record import data_warnings
from lorahydra.trial.score import TrialScores
from lorahydra.trial.summary import verdict
from lorahydra.utils.markdown import code, experiment_link, model_link, run_link, table

__all__ = ["model_description", "study_note"]

LONGEST = 4500
"""Characters: MLflow keeps 5000 of a note."""


def study_note(
    records: Sequence[TrialRecord],
    directions: Sequence[str],
    objectives: Sequence[str],
    *,
    study: str,
    experiment_id: str,
    test: TrialScores | None = None,
    registered: tuple[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The leaderboard as Markdown, with links to the trials; as many of them as a note has room for.

    Args:
        records: All trials.
        directions: Of the objectives.
        objectives: What the study optimises.
        study: Its name.
        experiment_id: MLflow's experiment.
        test: The winner on the test split, when the study has ended.
        registered: Name and version of the registered model.
        warnings: What is to be known of the data.
    """
    finished = sum(record.counts for record in records)
    query = f"searchFilter={quote(f'tags.`{Tag.STUDY}` = {study!r}')}&orderByKey={quote('metrics.`eval/combined`')}"
    lines = [f"{finished} trials finished. {experiment_link('All of them in a table', experiment_id, query)}.", ""]
    if test is not None:
        lines += [f"**On the test split:** {_on_test(test)}", ""]
    if registered is not None:
        name, version = registered
        lines += [f"**Winner:** {model_link(name, version)}, `models:/{name}@champion`", ""]
    lines += data_warnings(warnings)
    params = searched(records)
    short = short_names(params)
    others = [objective for objective in objectives if objective != Score.COMBINED]
    header = ["#", "trial", "combined", "95 %", *others, "time", *(short[name] for name in params)]
    rows = [
        _row(rank, record, experiment_id, objectives, others, params)
        for rank, record in enumerate(ranked(records, directions), start=1)
    ]
    shown = table(header, rows)
    while len(shown) > 3 and len("\n".join([*lines, *shown])) > LONGEST:
        shown.pop()
    hidden = len(rows) - (len(shown) - 2)
    return "\n".join([*lines, *shown, *([f"\n{hidden} more are not shown."] if hidden else [])])


def _row(
    rank: int,
    record: TrialRecord,
    experiment_id: str,
    objectives: Sequence[str],
    others: Sequence[str],
    params: Sequence[str],
) -> list[str]:
    complete = record.state is State.COMPLETE
    trial = run_link(str(record.number), experiment_id, record.run_id) if record.run_id else str(record.number)
    values = dict(zip(objectives, record.values or (), strict=False))
    interval = "" if record.combined_low is None else f"{record.combined_low:.3f}–{record.combined_high:.3f}"
    return [
        str(rank) if complete else "",
        trial,
        record.state.value if record.combined is None else f"{record.combined:.4f}",
        interval,
        *("" if name not in values else f"{values[name]:.4g}" for name in others),
        duration(record.seconds),
        *(code(value_text(record.params[name])) if name in record.params else "" for name in params),
    ]


def _on_test(test: TrialScores) -> str:
    said = f"combined {test.tuned.combined.mean:.4f} on {len(test.tuned.predictions.texts)} examples."
    return said if test.gain is None else f"{said} {verdict(test.gain)}."


def model_description(
    config: ExperimentConfig,
    best: TrialRecord,
    *,
    study: str,
    experiment_id: str,
    study_run: str,
    datasets: Mapping[str, str],
    test: TrialScores | None,
) -> str:
    """Where a version of the registered model comes from, as Markdown.

    Args:
        config: The winner's experiment.
        best: The winner.
        study: Name of the study.
        experiment_id: MLflow's experiment.
        study_run: MLflow's run of the study.
        datasets: Digest by context: `training`, `validation`.
        test: The winner on the test split.
    """
    trial = run_link(f"trial {best.number}", experiment_id, best.run_id) if best.run_id else f"trial {best.number}"
    lines = [
        f"LoRA adapter of {code(config.model.name_or_path)}: "
        f"{trial} of study {run_link(code(study), experiment_id, study_run)}.",
        "",
    ]
    if test is not None:
        lines += [f"On the test split: {_on_test(test)}", ""]
    facts = {name: value_text(value) for name, value in best.params.items()}
    facts |= {f"{context} data": digest for context, digest in datasets.items()}
    lines += table(["", ""], [[code(name), code(value)] for name, value in facts.items()])
    return "\n".join(lines)
