"""The overrides with which a study starts or is resumed.

What its scores depend on is kept with the fine-tune. The rest, such as addresses, limits and the names of keys, is
what the server is set to now, so that a fine-tune that failed because of it can be resumed when it is mended.
"""

from __future__ import annotations

from lorahydra.config.changes import SCORE_NEUTRAL_KEYS, may_change
from lorahydra.config.compose import literal
from lorahydra.names import Tag
from lorahydra.service.choices import Choices
from lorahydra.service.database import Job
from lorahydra.service.planning import Data, overrides_of
from lorahydra.service.views import FineTuneParams

__all__ = ["launch_overrides"]

PLACING = ("hydra/launcher", "hydra.launcher.", "hydra.sweeper.n_jobs")
"""Where trials run, and how many at once."""


def launch_overrides(job: Job, file: str | None, choices: Choices) -> list[str]:
    """The overrides of the next attempt, without the study's name and its stores.

    Args:
        job: The fine-tune, with the overrides of its first attempt.
        file: Name of the file that was uploaded for it; None is the demo dataset.
        choices: Judges and base models of this server, and its overrides.

    Raises:
        LorahydraError: Its judge or model is not set up any more.
    """
    # Its data, and what is done with them, are always those of the first attempt.
    now = overrides_of(FineTuneParams(**job.params), choices, Data(None, {}, 0))
    named = {Tag.FINE_TUNE: job.name} | ({} if file is None else {Tag.DATA_FILE: file})
    tags = ",".join(f"{tag}:{literal(name)}" for tag, name in named.items())
    return [*(o for o in job.overrides if not _is_free(o)), *filter(_is_free, now), f"tracking.tags={{{tags}}}"]


def _is_free(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    if key.startswith("judges."):  # of one judge
        key = f"judge.{key.split('.', 2)[-1]}"
    return may_change(key, SCORE_NEUTRAL_KEYS) or key.startswith(PLACING)
