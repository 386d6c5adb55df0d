"""What a job's study has found so far, read from the stores that it records to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import LorahydraError, StudyError, TrackingError
from lorahydra.names import (
    ADAPTER_DIR,
    BASELINE,
    PREDICTIONS_FILE,
    TEST,
    TEST_PREDICTIONS_FILE,
    Kind,
    Score,
    State,
    Tag,
    scored,
)
from lorahydra.service.processes import LOG_FILE
from lorahydra.service.views import Examples, ExampleView, LeaderboardRow, LogTail

__all__ = ["Progress", "Stores", "log_tail"]

LOG_BYTES = 1 << 18
"""Most of a log at a time."""


@dataclass(frozen=True)
class Progress:
    """How far a study is."""

    begun: bool = False
    finished: int = 0
    current: int | None = None
    trial_seconds: float | None = None
    """Mean of the trials that were completed."""
    best_score: float | None = None
    best_trial: int | None = None
    best_params: Mapping[str, Any] = field(default_factory=dict)
    best_run: str | None = None
    best_folder: Path | None = None
    baseline_score: float | None = None
    test_score: float | None = None
    """Both on the test split, once the winner is named."""


class Stores:
    """The studies' store and MLflow's, as all jobs of a service have them.

    Args:
        folder: The service's folder.
        mlflow_url: Address of MLflow's UI, for links.
    """

    def __init__(self, folder: Path, mlflow_url: str | None) -> None:
        self.studies = f"sqlite:///{folder / 'studies.db'}"
        self.tracking = TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")
        self._file = folder / "studies.db"
        self._url = mlflow_url
        self._experiment: str | None = None

    def prepare(self) -> None:
        """Make MLflow's store, so that neither its UI nor two jobs make it at once.

        Raises:
            LorahydraError: It cannot be made.
        """
        from lorahydra.tracking import check_store

        check_store(self.tracking)

    def progress(self, study: str) -> Progress:
        """How far a study is; nothing where it has not begun."""
        entry = self._entry(study)
        if entry is None:
            return Progress()
        best = entry.best
        running = [trial.number for trial in entry.trials if trial.state is State.RUNNING]
        seconds = [t.seconds for t in entry.trials if t.state is State.COMPLETE and t.seconds is not None]
        test = entry.result.get("test", {})
        return Progress(
            begun=True,
            finished=entry.finished,
            current=running[-1] if running else None,
            trial_seconds=sum(seconds) / len(seconds) if seconds else None,
            best_score=None if best is None else _finite(best.combined),
            best_trial=None if best is None else best.number,
            best_params={} if best is None else best.params,
            best_run=None if best is None else best.run_id,
            best_folder=None if best is None else best.folder,
            baseline_score=_finite(test.get(scored(BASELINE, Score.COMBINED))),
            test_score=_finite(test.get(scored(TEST, Score.COMBINED))),
        )

    def leaderboard(self, study: str) -> list[LeaderboardRow]:
        """The trials, best first."""
        from lorahydra.sweep.leaderboard import ranked

        entry = self._entry(study)
        if entry is None:
            return []
        return [
            LeaderboardRow(
                rank=rank if trial.state is State.COMPLETE else None,
                number=trial.number,
                state=trial.state.value,
                params=trial.params,
                combined=_finite(trial.combined),
                combined_low=_finite(trial.combined_low),
                combined_high=_finite(trial.combined_high),
                bertscore_f1=_finite(trial.bertscore_f1),
                judge_score=_finite(trial.judge_score),
                loss=_finite(trial.loss),
                seconds=_finite(trial.seconds),
                failure=None if trial.failure is None else " ".join(trial.failure.split()),
                mlflow_url=self.run_url(trial.run_id),
            )
            for rank, trial in enumerate(ranked(entry.trials, entry.directions), start=1)
        ]

    def study_run(self, study: str) -> str | None:
        """Id of the study's run in MLflow; None before it was opened."""
        from lorahydra.tracking import find_run

        return find_run(self.tracking, {Tag.STUDY: study, Tag.KIND: Kind.STUDY})

    def examples(self, study: str, study_run: str | None, limit: int, offset: int) -> Examples:
        """Answers of the winner to the test split; before it is named, of the best trial to the validation split.

        Judged answers come first.
        """
        from lorahydra.tracking import read_text

        found = self.progress(study)
        places = [("test", study_run, TEST_PREDICTIONS_FILE)] if found.test_score is not None else []
        places.append(("validation", found.best_run, PREDICTIONS_FILE))
        for split, run, artifact in places:
            text = None if run is None else read_text(self.tracking, run, artifact)
            if text is not None:
                # A judge sees some of them only: those have more to show.
                rows = sorted(_table(text), key=lambda row: row.get("judge_score") is None)
                items = [_example(row) for row in rows[offset : offset + limit]]
                return Examples(split, found.best_trial, items, len(rows))
        return Examples("", found.best_trial, [], 0)

    def adapter(self, job_folder: Path, study: str, progress: Progress | None = None) -> Path | None:
        """Folder of the winner's adapter, or of that of the best trial so far."""
        winner = job_folder / "outputs" / study / "best"
        if winner.is_dir():
            return winner
        found = progress or self.progress(study)
        folder = None if found.best_folder is None else found.best_folder / ADAPTER_DIR
        return folder if folder is not None and folder.is_dir() else None

    def run_url(self, run_id: str | None) -> str | None:
        """Page of a run in MLflow's UI."""
        experiment = self.experiment()
        if self._url is None or run_id is None or experiment is None:
            return None
        return f"{self._url}/#/experiments/{experiment}/runs/{run_id}"

    def trials_url(self) -> str | None:
        """Page of all trials, best first."""
        from lorahydra.tracking.views import view_url

        experiment = self.experiment()
        return None if self._url is None or experiment is None else view_url(self._url, experiment)

    def experiment(self) -> str | None:
        """Id of the experiment; None before MLflow's store was made."""
        if self._experiment is None and self._url is not None and Path(self.tracking.uri[10:]).is_file():
            from lorahydra.tracking.views import find_experiment

            try:
                self._experiment = find_experiment(self.tracking)
            except LorahydraError:
                return None
        return self._experiment

    def _entry(self, study: str) -> Any:
        """The study's `StudyEntry`; None where there is none yet."""
        from lorahydra.errors import StudyStoreError
        from lorahydra.sweep.catalog import find_study

        if not self._file.is_file():
            return None
        try:
            return find_study(study, self.studies)
        except StudyStoreError:
            raise
        except StudyError:
            return None


def log_tail(folder: Path, lines: int) -> LogTail:
    """The last lines of a job's log."""
    try:
        with (folder / LOG_FILE).open("rb") as stream:
            size = stream.seek(0, 2)
            start = max(0, size - LOG_BYTES)
            stream.seek(start)
            text = stream.read(LOG_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return LogTail("", 0, False)
    # Not `splitlines`: a line that overwrites itself is one line.
    found = text.removesuffix("\n").split("\n") if text else []
    if start:
        found = found[1:]  # the first one is not whole
    kept = found[-lines:]
    return LogTail("\n".join(kept), size, bool(start) or len(kept) < len(found))


def _table(text: str) -> Iterator[dict[str, Any]]:
    """Rows of a table as MLflow writes it."""
    try:
        content = json.loads(text)
        columns, data = content["columns"], content["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrackingError("the table of answers in MLflow cannot be read") from error
    return (dict(zip(columns, row, strict=False)) for row in data)


def _example(row: Mapping[str, Any]) -> ExampleView:
    return ExampleView(
        prompt=_sendable(row.get("prompt")) or "",
        reference=_sendable(row.get("reference")) or "",
        answer=_sendable(row.get("prediction")) or "",
        bertscore_f1=_finite(row.get("bertscore_f1")),
        judge_score=_finite(row.get("judge_score")),
        judge_reason=_sendable(row.get("judge_reason")),
        baseline_answer=_sendable(row.get("baseline_prediction")),
        baseline_bertscore_f1=_finite(row.get("baseline_bertscore_f1")),
        baseline_judge_score=_finite(row.get("baseline_judge_score")),
    )


def _finite(value: float | None) -> float | None:
    """The number, where it is one: JSON knows no others."""
    return value if value is not None and math.isfinite(value) else None


def _sendable(text: object) -> str | None:
    """A text of somebody's data, with a question mark for each lone surrogate."""
    return None if text is None else str(text).encode("utf-8", "replace").decode("utf-8")
