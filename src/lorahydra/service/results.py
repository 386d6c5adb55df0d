"""What the studies of fine-tunes have found so far, read from the stores that they record to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import LorahydraError, StudyError, StudyStoreError, TrackingError
from lorahydra.names import (
    ADAPTER_DIR,
    BASELINE,
    HEADLINES,
    PREDICTIONS_FILE,
    TEST,
    TEST_PREDICTIONS_FILE,
    Kind,
    PredictionColumn,
    Score,
    State,
    Tag,
    scored,
)
from lorahydra.service.errors import ConflictError
from lorahydra.service.outcome import finite, outcome_of
from lorahydra.service.processes import LOG_FILE
from lorahydra.service.views import Examples, ExampleView, JobView, LeaderboardRow, LogTail
from lorahydra.utils.databases import sqlite_file

if TYPE_CHECKING:
    from lorahydra.tracking import StoredRuns

__all__ = ["LONGEST_LOG", "Progress", "Stores", "log_tail"]

LONGEST_LOG = 2000
"""Largest number of lines of a log that can be asked for."""
LOG_BYTES = 1 << 18
"""Most of a log that is read at a time."""
NUMBERS = (*HEADLINES, Score.COMBINED_LOW, Score.COMBINED_HIGH, Score.LOSS, "seconds", "p_best")
"""Numbers of a trial that the leaderboard shows."""


@dataclass(frozen=True)
class Progress:
    """How far a study is; the last two fields are not kept in the row of its fine-tune."""

    finished: int = 0
    current: int | None = None
    trial_seconds: float | None = None
    """Mean wall time per finished trial; what trials at the same time share counts once."""
    stage: str | None = None
    stage_started: float | None = None
    """What the study does after its last trial, and since when."""
    validation_baseline: Mapping[str, Any] | None = None
    """The untuned model's scores on the validation split."""
    best_score: float | None = None
    best_trial: int | None = None
    best_params: Mapping[str, Any] = field(default_factory=dict)
    baseline_score: float | None = None
    test_score: float | None = None
    """Both are measured on the test split, once the winner is known."""
    outcome: Mapping[str, Any] | None = None
    """What the study said at its end, as plain JSON by the names of `JobView`'s fields."""
    best_run: str | None = None
    best_folder: Path | None = None


class Stores:
    """The studies' store and MLflow's, which all fine-tunes share.

    Args:
        folder: Has them if no other address is given.
        mlflow_url: Address of MLflow's UI, for links.
        studies: Address of the studies' database.
        tracking_uri: Address of MLflow's store.
    """

    def __init__(
        self, folder: Path, mlflow_url: str | None, studies: str | None = None, tracking_uri: str | None = None
    ) -> None:
        self.studies = studies or f"sqlite:///{folder / 'studies.db'}"
        self.are_shared = bool(studies or tracking_uri)
        """Whether other servers may use them, too."""
        self.tracking = TrackingConfig(uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}")
        self._url = mlflow_url
        self._experiment_id: str | None = None
        self._viewed: set[str] = set()
        """Studies whose view in MLflow this server has saved: those of earlier versions have none."""

    def prepare(self) -> None:
        """Create MLflow's store now, because its UI and two studies would disturb each other if they all tried.

        A database of studies that is a server has to answer, too.
        """
        from lorahydra.tracking import check_store

        check_store(self.tracking)
        if sqlite_file(self.studies) is None:
            from lorahydra.sweep.storage import open_storage

            open_storage(self.studies)

    def progress(self, study: str) -> Progress | None:
        """How far a study is; None if it has not begun."""
        entry = self._entry(study)
        if entry is None:
            return None
        # A study that goes on with more trials keeps its earlier result until it has another one.
        best, test = entry.best, entry.result.get("test", {}) if entry.has_ended else {}
        stage, since = entry.stage or (None, None)
        running = [trial.number for trial in entry.trials if trial.state is State.RUNNING]
        return Progress(
            finished=entry.finished,
            current=running[-1] if running else None,
            trial_seconds=entry.seconds_per_trial,
            stage=stage,
            stage_started=since,
            validation_baseline=entry.baseline and {name: finite(value) for name, value in entry.baseline.items()},
            baseline_score=finite(test.get(scored(BASELINE, Score.COMBINED))),
            test_score=finite(test.get(scored(TEST, Score.COMBINED))),
            outcome=outcome_of(entry) if entry.state is State.COMPLETE else None,
            **{} if best is None else _of_best(best),
        )

    def leaderboard(self, job: JobView) -> list[LeaderboardRow]:
        """The trials of a fine-tune, best first; empty before the first one."""
        entry = self._entry(job.study)
        if entry is None:
            return []
        from lorahydra.sweep.trial_record import ordinals

        counted = ordinals(entry.trials)
        return [
            LeaderboardRow(
                rank=rank if trial.state is State.COMPLETE else None,
                number=trial.number,
                trial=counted[trial.number],
                state=trial.state.value,
                params=trial.params,
                **_numbers(trial),
                is_winner=trial.is_winner,
                in_set=trial.in_set,
                failure=None if trial.failure is None else " ".join(trial.failure.split()),
                mlflow_url=self.run_url(trial.run_id),
            )
            for rank, trial in enumerate(entry.leaderboard, start=1)
        ]

    def leaderboard_csv(self, job: JobView) -> str:
        """The same table as MLflow has as an artifact of the study."""
        from lorahydra.sweep.leaderboard import leaderboard_csv

        entry = self._entry(job.study)
        return (
            leaderboard_csv([], [], [])
            if entry is None
            else leaderboard_csv(entry.leaderboard, entry.directions, entry.objectives)
        )

    def state(self, study: str) -> State | None:
        """`complete`, `running` or `interrupted`; None if the study has not begun."""
        entry = self._entry(study)
        return None if entry is None else entry.state

    def end_workers(self, study: str, *, at_once: bool) -> int | None:
        """End what goes on of a study elsewhere, as `lorahydra.sweep.catalog.end_workers` does."""
        from lorahydra.sweep.catalog import end_workers

        try:
            return end_workers(study, self.studies, at_once=at_once) if _exists(self.studies) else 0
        except StudyStoreError:
            raise
        except StudyError:  # it had not begun
            return 0

    def study_run(self, study: str) -> str | None:
        """Id of the study's run in MLflow; None if it was not opened yet."""
        from lorahydra.tracking import find_run

        return find_run(self.tracking, {Tag.STUDY: study, Tag.KIND: Kind.STUDY})

    def examples(self, job: JobView, limit: int, offset: int = 0) -> Examples:
        """Predictions of the winner on the test split; before it is known, of the best trial on the validation split.

        Judged ones come first.
        """
        from lorahydra.tracking import read_text

        progress = self.progress(job.study) or Progress()
        places = [("validation", progress.best_run, PREDICTIONS_FILE)]
        if progress.test_score is not None:
            places.insert(0, ("test", job.mlflow.study_run, TEST_PREDICTIONS_FILE))
        for split, run, artifact in places:
            text = None if run is None else read_text(self.tracking, run, artifact)
            if text is not None:
                # A judge sees only some of them, and those have more to show.
                rows = sorted(_table(text), key=lambda row: row.get(PredictionColumn.JUDGE_SCORE) is None)
                items = [_example(row) for row in rows[offset : offset + limit]]
                return Examples(split, progress.best_trial, items, len(rows))
        return Examples("", progress.best_trial, [], 0)

    def test_table(self, job: JobView) -> list[dict[str, Any]]:
        """The winner's predictions on the test split, by `PredictionColumn`; empty without test rows."""
        from lorahydra.tracking import read_text

        run = job.mlflow.study_run
        text = None if run is None or job.test_score is None else read_text(self.tracking, run, TEST_PREDICTIONS_FILE)
        return [] if text is None else list(_table(text))

    def adapter(self, job: JobView) -> Path:
        """Folder of the winner's adapter, or of that of the best trial so far.

        Raises:
            ConflictError: The fine-tune has no adapter yet.
        """
        winner = Path(job.folder) / "outputs" / job.study / "best"
        if winner.is_dir():
            return winner
        progress = self.progress(job.study)
        if progress and progress.best_folder and (folder := progress.best_folder / ADAPTER_DIR).is_dir():
            return folder
        raise ConflictError(f"fine-tune {job.id} has no adapter yet: none of its trials is complete", "no_adapter")

    def recorded(self, studies: Sequence[str]) -> StoredRuns:
        """What MLflow has of these studies."""
        from lorahydra.tracking import StoredRuns, stored_runs

        return stored_runs(self.tracking, studies) if studies else StoredRuns()

    def delete(self, studies: Sequence[str], recorded: Sequence[str]) -> None:
        """Delete studies from their store, and the runs of the studies `recorded` from MLflow."""
        if studies and _exists(self.studies):
            from lorahydra.sweep.deleting import delete_studies

            delete_studies(self.studies, studies)
        if recorded:
            from lorahydra.tracking import delete_runs

            delete_runs(self.tracking, recorded)

    def adapter_files(self, job: JobView) -> dict[str, bytes | Path]:
        """The content of each file of that adapter, or where it is, with a card for others.

        Raises:
            ConflictError: The fine-tune has no adapter yet.
        """
        from lorahydra.adapters.bundle import bundle
        from lorahydra.adapters.find import find_adapter

        name = str(job.params.base_model_name)
        with find_adapter(str(self.adapter(job)), uri=self.tracking.uri, record=True) as found:
            # A folder in the models folder is a copy of the model on the hub if it has the hub's form of names.
            return bundle(found, job.name, base=name if "/" in name else None)

    def run_url(self, run_id: str | None) -> str | None:
        """Page of a run in MLflow's UI."""
        experiment = self._experiment()
        if experiment is None or run_id is None:
            return None
        from lorahydra.tracking.views import TRAINING

        return f"{self._url}/#/experiments/{experiment}/runs/{run_id}?{TRAINING}"

    def trials_url(self, study: str, name: str) -> str | None:
        """Page of a study's trials, best first; `name` is that of the fine-tune."""
        from lorahydra.tracking.views import save_study_view, view_url

        experiment = self._experiment()
        if self._url is None or experiment is None:
            return None
        if study not in self._viewed:
            with suppress(LorahydraError):
                save_study_view(self.tracking, experiment, study, name)
            self._viewed.add(study)
        return view_url(self._url, experiment, study)

    def _experiment(self) -> str | None:
        """Id of the experiment; None without MLflow's UI, or before its store was made."""
        if self._experiment_id is None and self._url is not None and _exists(self.tracking.uri):
            from lorahydra.tracking.views import find_experiment

            with suppress(LorahydraError):
                self._experiment_id = find_experiment(self.tracking)
        return self._experiment_id

    def _entry(self, study: str) -> Any:
        """The study's `StudyEntry`; None if there is none yet."""
        from lorahydra.sweep.catalog import find_study

        if not _exists(self.studies):
            return None
        try:
            return find_study(study, self.studies)
        except StudyStoreError:
            raise
        except StudyError:
            return None


def _exists(store: str) -> bool:
    """Whether a store was made already, if it is a SQLite file."""
    file = sqlite_file(store)
    return file is None or file.is_file()


def log_tail(folder: Path, lines: int) -> LogTail:
    """The last lines of the log in a job's folder, and never more than 256 KiB."""
    try:
        with (folder / LOG_FILE).open("rb") as stream:
            size = stream.seek(0, 2)
            start = max(0, size - LOG_BYTES)
            stream.seek(start)
            text = stream.read(LOG_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return LogTail("", 0, False)
    # Not `splitlines`: a line that overwrites itself, as a progress bar does, is one line.
    every = text.removesuffix("\n").split("\n") if text else []
    if start:
        every = every[1:]  # the first one is not whole
    last = every[-lines:]
    return LogTail("\n".join(last), size, bool(start) or len(last) < len(every))


def _numbers(trial: Any) -> dict[str, Any]:
    final = {} if trial.final is None else asdict(trial.final)
    return {
        **{name: finite(getattr(trial, name)) for name in NUMBERS},
        "metrics": dict(trial.metrics),
        **{f"final_{name}": value for name, value in final.items()},
    }


def _of_best(trial: Any) -> dict[str, Any]:
    where = {"best_run": trial.run_id, "best_folder": trial.folder}
    score = {"best_score": finite(trial.combined), "best_trial": trial.number, "best_params": dict(trial.params)}
    return score | where


def _table(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a table as MLflow writes it."""
    try:
        content = json.loads(text)
        columns, data = content["columns"], content["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrackingError("the table of predictions in MLflow cannot be read") from error
    return (dict(zip(columns, row, strict=False)) for row in data)


def _example(row: Mapping[str, Any]) -> ExampleView:
    numbers = (
        *(PredictionColumn.BERTSCORE_F1, PredictionColumn.JUDGE_SCORE),
        *(PredictionColumn.BASELINE_BERTSCORE_F1, PredictionColumn.BASELINE_JUDGE_SCORE),
    )
    return ExampleView(
        prompt=_sendable(row.get(PredictionColumn.PROMPT)) or "",
        reference=_sendable(row.get(PredictionColumn.REFERENCE)) or "",
        answer=_sendable(row.get(PredictionColumn.PREDICTION)) or "",
        judge_reason=_sendable(row.get(PredictionColumn.JUDGE_REASON)),
        baseline_answer=_sendable(row.get(PredictionColumn.BASELINE_PREDICTION)),
        **{name: finite(row.get(name)) for name in numbers},
    )


def _sendable(text: object) -> str | None:
    """Text of somebody's data, with a question mark for each lone surrogate."""
    return None if text is None else str(text).encode("utf-8", "replace").decode("utf-8")
