"""Addresses of tracking stores: a SQLite file, PostgreSQL or an MLflow server."""

from __future__ import annotations

import shlex

from lorahydra.errors import ConfigError
from lorahydra.utils.databases import absolute, checked_url, shown

__all__ = ["KEY", "is_server", "resolve", "run_url"]

KEY = "tracking.uri"
SERVERS = ("http://", "https://")
ALLOWED = (
    "a SQLite file (sqlite:///mlflow.db), PostgreSQL (postgresql://USER@HOST/NAME) or an MLflow server "
    "(http://HOST:5000)"
)


def resolve(uri: str, key: str = KEY) -> str:
    """The same store by an address that does not depend on the working folder; `key` is the setting that has it.

    Raises:
        ConfigError: It is not the address of a SQLite file, a PostgreSQL database or a server.
    """
    uri = uri.strip()
    if is_server(uri) and uri.partition("://")[2].strip("/"):
        return uri.rstrip("/")
    url = checked_url(uri, key, ALLOWED)
    if url.startswith("sqlite") and "?" in url:
        raise ConfigError(
            f"{key}={uri} has options after the name of the file, which are not supported: give {ALLOWED}"
        )
    return absolute(url)


def is_server(uri: str) -> bool:
    """Whether an address is that of an MLflow server."""
    return uri.lower().startswith(SERVERS)


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Link to a run on a server; for a database, the command that opens the UI on it."""
    if is_server(uri):
        return f"{shown(uri)}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"lorahydra ui --uri {shlex.quote(shown(uri))}"
