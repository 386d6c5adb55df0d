"""Judging the answers of a trial again; a trial of a study counts there from then on.

```python
rejudge_trial(Path("outputs/my-study/4"), overrides=["judge.timeout=120"])
```
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError, JudgeCoverageError, LorahydraError, NotRecordedError
from lorahydra.names import STUDY_STORE, State, Tag
from lorahydra.sweep.catalog import load_study
from lorahydra.sweep.running_trial import RunningTrial
from lorahydra.sweep.storage import reading
from lorahydra.sweep.study_store import TRIALS
from lorahydra.sweep.study_trial import place_of
from lorahydra.sweep.trial_queue import TrialQueue
from lorahydra.tracking import close_run, read_run
from lorahydra.trial.rejudge import judge_saved, rejudge, rejudge_hint, with_overrides
from lorahydra.trial.saved import SavedTrial, load_trial
from lorahydra.trial.score import TrialScores

__all__ = ["rejudge_trial"]

logger = logging.getLogger("lorahydra.sweep")


def rejudge_trial(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    tracking_uri: str | None = None,
    storage: str | None = None,
) -> TrialScores | None:
    """Judge the answers of a trial that ended because of its judge; complete its run, and its trial in a study.

    Args:
        folder: The trial's output folder.
        overrides: Overrides of the judge's keys that do not change verdicts, for example `judge.max_cost=2`.
        tracking_uri: Where the MLflow store is, if it has moved.
        storage: Where the study's database is, if it has moved or has a password.

    Returns:
        The scores; None for a trial that is complete in its study.

    Raises:
        StudyError: The study does not exist, is running the trial, or has run its parameters again.
        LorahydraError: The judge fails again, or the trial cannot be read.
    """
    trial = load_trial(folder, tracking_uri=tracking_uri)
    name, kept_in = (trial.study, trial.storage) if trial.study is not None else (_by_tag(trial), STUDY_STORE)
    if name is None:
        return rejudge(folder, overrides=overrides, tracking_uri=tracking_uri)
    config = with_overrides(trial.config, overrides)
    url = storage or kept_in
    if url is None or ":***@" in url:
        reason = "was kept in memory" if url is None else f"is in {url}, whose password was not kept"
        raise ConfigError(f"study {name} {reason}: give its database with --storage")
    with reading(url):
        study = load_study(name, url)
        queue = TrialQueue(study, int(study.user_attrs.get(TRIALS, 0)))
        queue.close_dead()
        running = queue.take_again(trial.run_id)
        if running is None:
            logger.info("The trial in %s has its result in study %s: nothing is left to judge", folder, name)
            return None
        with _ended(running, queue, config.tracking, trial.run_id), rejudge_hint(folder):
            place = place_of(running, config)
            result = judge_saved(trial, config, place=place, tracking_uri=tracking_uri)
    logger.info(
        "Trial %d of study %s is complete; its winner is named by: lorahydra studies resume %s",
        running.number,
        name,
        name,
    )
    return result.scores


@contextmanager
def _ended(running: RunningTrial, queue: TrialQueue, tracking: TrackingConfig, run_id: str) -> Iterator[None]:
    """End the trial even if its judge fails or the program is interrupted."""
    try:
        yield
    except JudgeCoverageError as error:
        running.failed(f"{type(error).__name__}: {error}")
        raise
    except BaseException:
        queue.interrupt_mine()
        with contextlib.suppress(LorahydraError):  # the run ends as the study has the trial
            close_run(tracking, run_id, State.INTERRUPTED)
        raise


def _by_tag(trial: SavedTrial) -> str | None:
    """The study, from the tag of the trial's run, if an earlier version saved the predictions without its name."""
    with contextlib.suppress(NotRecordedError):
        return read_run(trial.config.tracking, trial.run_id).tags.get(Tag.STUDY)
    return None
