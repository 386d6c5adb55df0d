"""Compares two fine-tunes: their settings, and their winners on the same test rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from lorahydra.config.changes import SCORE_NEUTRAL_KEYS, differing
from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.errors import LorahydraError
from lorahydra.names import TuningEffect
from lorahydra.service.choices import composed
from lorahydra.service.database import Database, Job
from lorahydra.service.errors import InvalidError
from lorahydra.service.jobs import Jobs
from lorahydra.service.results import Stores
from lorahydra.service.rows import get_row
from lorahydra.service.views import ComparisonView, DifferenceView, JobState, JobView

__all__ = ["Comparisons"]

SCORING = (
    *(
        "judge.",
        "metrics",
        "evaluation.bertscore_",
        "evaluation.judge_weight",
        "evaluation.lang",
        "evaluation.rescale_",
    ),
    "evaluation.weights",
)
"""Beginnings of the keys that decide what a score means."""
TOLD = ("data.", "model.", "judge.name", "judge.model")
"""Beginnings of keys whose choice is told by the names of data, model and judge."""


class Comparisons:
    """Compares fine-tunes of one server; methods may be called from any thread."""

    def __init__(self, database: Database, jobs: Jobs, stores: Stores) -> None:
        self._database, self._jobs, self._stores = database, jobs, stores

    def compare(self, first_id: int, second_id: int) -> ComparisonView:
        """Two fine-tunes side by side.

        Raises:
            NotFoundError: There is no such fine-tune.
            InvalidError: They are the same.
            TrackingError: Their predictions cannot be read.
        """
        if first_id == second_id:
            raise InvalidError("a fine-tune is compared with another one", "same_fine_tune")
        jobs = self._jobs.get(first_id), self._jobs.get(second_id)
        configs = self._config(first_id), self._config(second_id)
        obstacle, verdict = self._verdict(jobs, configs)
        return ComparisonView(*jobs, list(_differences(jobs, configs)), obstacle, **verdict)

    def _config(self, job_id: int) -> ExperimentConfig | None:
        with self._database.reading() as session:
            overrides = get_row(session, Job, job_id).overrides
        with suppress(LorahydraError):
            return composed(overrides)
        return None  # its judge, or what else it names, is not set up any more

    def _verdict(
        self, jobs: tuple[JobView, JobView], configs: tuple[ExperimentConfig | None, ExperimentConfig | None]
    ) -> tuple[str | None, dict[str, Any]]:
        """Why both cannot be compared, and the fields about the difference."""
        nothing = dict.fromkeys(("gain", "gain_low", "gain_high", "examples", "verdict"))
        if any(job.state is not JobState.COMPLETE for job in jobs):
            return "not_complete", nothing
        first, second = (self._stores.test_table(job) for job in jobs)
        if not (first and second):
            return "no_test_rows", nothing
        from lorahydra.sweep.paired import has_same_rows, paired_gain

        if not has_same_rows(first, second):
            return "other_test_rows", nothing
        before, after = configs
        if before is None or after is None or any(map(_scores_by, differing(before, after, SCORE_NEUTRAL_KEYS))):
            return "other_scoring", nothing
        gained = paired_gain(first, second, after)
        if gained is None:
            return "no_common_verdicts", nothing
        effect = TuningEffect.of(gained.low, gained.high, gained.count).value
        ends = {"gain": gained.mean, "gain_low": gained.low, "gain_high": gained.high}
        return None, {**ends, "examples": gained.count, "verdict": effect}


def _scores_by(key: str) -> bool:
    return key.startswith(SCORING)


def _differences(
    jobs: tuple[JobView, JobView], configs: tuple[ExperimentConfig | None, ExperimentConfig | None]
) -> Iterator[DifferenceView]:
    first, second = jobs
    chosen: list[tuple[str, Any, Any]] = [
        (key, getattr(first.params, key), getattr(second.params, key))
        for key in ("base_model_name", "judge_model_id", "n_trials")
    ]
    # Two datasets may have the same name.
    if first.dataset != second.dataset:
        yield DifferenceView("dataset", first.dataset_name, second.dataset_name)
    yield from (DifferenceView(key, _text(one), _text(other)) for key, one, other in chosen if one != other)
    before, after = configs
    if before is not None and after is not None:
        flat = flatten(before), flatten(after)
        for key in differing(before, after, SCORE_NEUTRAL_KEYS - {"search."} | set(_runs(flat))):
            if not key.startswith(TOLD):
                yield DifferenceView(key, _text(flat[0].get(key)), _text(flat[1].get(key)))
    for key in dict.fromkeys([*first.best_params, *second.best_params]):
        one, other = first.best_params.get(key), second.best_params.get(key)
        if one != other:
            yield DifferenceView(key, _text(one), _text(other), is_searched=True)


def _runs(flat: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Iterator[str]:
    """Keys that say what trial 0 is, which follows from others."""
    return (key for each in flat for key in each if key.startswith("search.first_trial"))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
