"""Pushes an adapter to a repository of the model hub, as `lorahydra export` writes it; imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.adapters.bundle import bundle
from lorahydra.adapters.find import FoundAdapter
from lorahydra.errors import ConfigError, LorahydraError, ModelError, ServiceError, library_errors, reason
from lorahydra.modeling.huggingface import no_hub_advice
from lorahydra.modeling.metadata import read_metadata
from lorahydra.modeling.packaged import public_name

__all__ = ["Pushed", "push_adapter", "repository"]

SCHEME = "hub:"
ANSWER_SECONDS = 10.0
"""How long the hub may stay silent before it counts as unreachable."""
COMMIT_SECONDS = 120.0
"""The same while files are uploaded and a commit is made."""
TOKEN = "HF_TOKEN"
BUSY = (408, 429)
"""Statuses below 500 with which a later attempt may succeed."""


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub."""

    address: str
    private: bool


def repository(target: str) -> str:
    """The hub id in `hub:OWNER/NAME`.

    Raises:
        ConfigError: `target` is not of this form.
    """
    repo = target.removeprefix(SCHEME)
    if not target.startswith(SCHEME) or repo.count("/") != 1:
        raise ConfigError(f"{target} is not a place on the hub: write hub:OWNER/NAME")
    if fault := _fault(repo):
        raise ConfigError(f"{target} is not a place on the hub: {fault}")
    return repo


def _fault(repo: str) -> str | None:
    """Why this is not a hub id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in `__all__`

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return reason(error)
    return None


def push_adapter(adapter: FoundAdapter, repo: str, *, public: bool = False, base: str | None = None) -> Pushed:
    """Push an adapter with its model card in one commit; a repository that does not exist is made.

    The token is the one in `HF_TOKEN`, or the one that `hf auth login` keeps.

    Args:
        adapter: The adapter, with the runs for its card.
        repo: Hub id.
        public: Whether everybody may see a new repository, or already sees this one.
        base: Hub id of the base model, if it was trained on a copy that others do not have.

    Raises:
        ConfigError: The hub is switched off, the token is missing or not accepted, or the repository is public.
        ModelError: It is not an adapter, or others do not have its base model.
        ServiceError: The hub cannot be reached, or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    _check_base(adapter.folder, base)
    if constants.is_offline_mode():
        raise ConfigError("nothing can be pushed to the hub while HF_HUB_OFFLINE is set")
    if not (token := get_token()):
        raise ConfigError(f"the hub needs a token: put one with write access into the environment variable {TOKEN}")
    if not token.isascii():
        raise ConfigError(f"the hub's token holds letters that no token has: check {TOKEN}")
    files = bundle(adapter, repo.partition("/")[2], base=base)
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in sorted(files.items())]
    api = HfApi(token=token)
    with _hub_errors(repo), no_hub_advice(), _no_bars_in_a_log(), _not_waiting_for_ever():
        try:
            private = bool(api.model_info(repo, timeout=ANSWER_SECONDS).private)
        except RepositoryNotFoundError:
            private = not public
            api.create_repo(repo, private=private)
        if not private and not public:
            raise ConfigError(f"{SCHEME}{repo} exists and everybody can see it: add --public, or choose another name")
        commit = api.create_commit(repo, added, commit_message=f"Adapter {adapter.name}")
    return Pushed(commit.commit_url, private)


def _check_base(folder: Path, base: str | None) -> None:
    """Refuse an adapter whose base model is a place on this machine, which its files would name."""
    name = base or public_name(read_metadata(folder).model.name_or_path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf") or Path(name).exists():
        raise ModelError(f"the base model {name} is on this machine only: name it on the hub with --base OWNER/NAME")
    if fault := _fault(name):
        raise ModelError(f"the base model {name} is not one of the hub ({fault}): name it with --base OWNER/NAME")


@contextmanager
def _no_bars_in_a_log() -> Iterator[None]:
    """Turn off huggingface_hub's progress bars where no person watches them: it draws them into files, too."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, but not in `__all__`
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _not_waiting_for_ever() -> Iterator[None]:
    """Let each request end in which the hub stays silent; huggingface_hub would wait."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http  # the factory that is set has no public name

    before = _http._GLOBAL_CLIENT_FACTORY

    def client() -> Any:
        made = before()
        made.timeout = COMMIT_SECONDS
        return made

    set_client_factory(client)  # after an error of the connection, huggingface_hub makes a new client
    try:
        yield
    finally:
        set_client_factory(before)


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn each error of huggingface_hub into one line."""
    from huggingface_hub import constants, errors

    def ours(error: Exception) -> LorahydraError:
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        if status == 401:
            return ConfigError(f"{constants.ENDPOINT} does not accept the token: check {TOKEN}")
        if status == 403:
            return ConfigError(f"the token may not write to {SCHEME}{repo}: check {TOKEN} and the owner's name")
        what = f"{SCHEME}{repo} cannot be written"
        if status is not None and status < 500 and status not in BUSY:
            return ConfigError(f"{what}: {constants.ENDPOINT} refuses it ({reason(error)})")
        return ServiceError(f"{what}: {constants.ENDPOINT} cannot be reached or fails ({reason(error)}); try again")

    with library_errors(ours):
        yield
