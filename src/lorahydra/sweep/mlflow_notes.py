"""Texts for MLflow's UI: the leaderboard on the page of a study, and the description of a registered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorahydra.config.schema import ExperimentConfig
from lorahydra.names import CHAMPION
from lorahydra.sweep.choice import Choice
from lorahydra.sweep.labels import value_text
from lorahydra.sweep.leaderboard import Column, leaderboard_columns
from lorahydra.sweep.ranking import ranked
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.tracking.views import view_query
from lorahydra.trial.record import data_warnings
from lorahydra.trial.score import TrialScores
from lorahydra.utils.markdown import code, experiment_link, model_link, run_link, table

__all__ = ["model_description", "study_note"]

LONGEST = 4500
"""Largest number of characters: MLflow keeps 5000 of a note."""


def study_note(
    records: Sequence[TrialRecord],
    directions: Sequence[str],
    objectives: Sequence[str],
    *,
    study: str,
    experiment_id: str,
    choice: Choice | None = None,
    test: TrialScores | None = None,
    registered: tuple[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The leaderboard as Markdown, with links to the trials; as many trials as a note has room for.

    Args:
        records: All trials.
        directions: Of the objectives.
        objectives: Their names.
        study: Name of the study.
        experiment_id: Id of the experiment in MLflow.
        choice: How the winner was chosen, when the study has ended.
        test: The winner on the test split, when the study has ended.
        registered: Name and version of the registered model.
        warnings: Warnings about the data.
    """
    finished = sum(record.counts for record in records)
    link = experiment_link("All of them in a table", experiment_id, view_query(study))
    lines = [f"{finished} trials finished. {link}.", ""]
    if choice is not None:
        lines += [f"**Choice:** {choice.sentences}", ""]
    if test is not None:
        lines += [f"**On the test split:** {_on_test(test)}", ""]
    if registered is not None:
        name, version = registered
        lines += [f"**Winner:** {model_link(name, version)}, `models:/{name}@{CHAMPION}`", ""]
    lines += data_warnings(warnings)
    ordered = ranked(records, directions)
    columns = leaderboard_columns(ordered, objectives)
    rows = [[_cell(column, record, experiment_id) for column in columns] for record in ordered]
    shown = table([column.header for column in columns], rows)
    while len(shown) > 3 and len("\n".join([*lines, *shown])) > LONGEST:
        shown.pop()
    hidden = len(rows) - (len(shown) - 2)
    return "\n".join([*lines, *shown, *([f"\n{hidden} more are not shown."] if hidden else [])])


def _cell(column: Column, record: TrialRecord, experiment_id: str) -> str:
    text = column.cell(record)
    if column.header == "trial" and record.run_id:
        return run_link(text, experiment_id, record.run_id)
    return code(text) if column.param in record.params else text


def _on_test(test: TrialScores) -> str:
    said = f"combined {test.tuned.combined.mean:.4f} on {len(test.tuned.predictions.texts)} examples."
    return " ".join([said, *(f"{sentence}." for sentence in test.sentences)])


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
    """The origin of a version of the registered model, as Markdown; `datasets` are digests by context."""
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
