"""Addresses of stores: what is accepted, how they are shown, how their UI is opened.

MLflow percent-encodes the path in an address of its own making (`sqlite:////home/%D0%9C%D0%BE%D0%B8%20data/mlflow.db`),
and people do not. `sqlite_file` reads both, `sqlite_uri` writes what SQLAlchemy and MLflow read.
"""

from __future__ import annotations

import functools
import importlib.util
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from lorahydra.errors import ConfigError

__all__ = [
    "database_file",
    "is_server",
    "local_path",
    "resolve",
    "run_url",
    "shown",
    "sqlite_file",
    "sqlite_uri",
    "with_driver",
]

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SQLITE = "sqlite:///"


def resolve(uri: str) -> str:
    """The same store by an address that does not depend on the working folder.

    Raises:
        ConfigError: Not an address of a SQLite file, another database or a server.
    """
    scheme, separator, rest = uri.strip().partition("://")
    dialect = scheme.lower().partition("+")[0]
    if not separator or dialect not in (*SERVERS, *DATABASES) or not rest.strip("/"):
        raise ConfigError(
            f"tracking.uri={shown(uri)} is not allowed: give a SQLite file (sqlite:///mlflow.db), another "
            "database (postgresql://USER@HOST/NAME) or an MLflow server (http://HOST:5000)"
        )
    if dialect in SERVERS:
        return uri.strip().rstrip("/")
    if dialect != "sqlite":
        return with_driver(uri.strip())
    file = sqlite_file(uri.strip())
    if file is None:
        raise ConfigError(f"tracking.uri={uri} is not allowed: give a SQLite file, for example sqlite:///mlflow.db")
    return sqlite_uri(file.expanduser().absolute())


def local_path(text: str) -> Path:
    """The path that stands in an address, percent-encoded or not.

    Where both readings are possible, the file that is there is meant.
    """
    literal, decoded = Path(text), Path(unquote(text))
    if "\N{REPLACEMENT CHARACTER}" in decoded.name or literal == decoded:
        return literal
    for path in (literal, decoded):
        if path.expanduser().exists():
            return path
    # MLflow makes the folder of an encoded name beside the right one.
    return literal if literal.expanduser().parent.is_dir() and not decoded.expanduser().parent.is_dir() else decoded


def sqlite_file(uri: str) -> Path | None:
    """The file in the address of a SQLite database; None for another address, and for one in memory."""
    scheme, separator, name = uri.partition(":///")
    if not separator or scheme.lower().partition("+")[0] != "sqlite":
        return None
    if not name or name.startswith((":", "file:")) or "?" in name:
        return None
    return local_path(name)


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file."""
    name = str(file)
    return f"{SQLITE}{name.replace('%', '%25') if '%' in name and _decodes() else name}"


@functools.cache
def _decodes() -> bool:
    """Whether SQLAlchemy reads the path in an address as percent-encoded: from 2.1 on."""
    import sqlalchemy

    return sqlalchemy.make_url(f"{SQLITE}%25").database == "%"


def with_driver(uri: str) -> str:
    """The address with the driver that `lorahydra[postgresql]` installs, where it names none.

    SQLAlchemy takes psycopg2 for a plain `postgresql://` up to 2.0 and psycopg from 2.1 on.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme.lower() == "postgresql" and importlib.util.find_spec("psycopg2") is not None:
        return f"postgresql+psycopg2{separator}{rest}"
    return uri


def is_server(uri: str) -> bool:
    """Whether a resolved address is that of an MLflow server."""
    return uri.partition("://")[0].lower() in SERVERS


def database_file(uri: str) -> Path | None:
    """The file of a resolved SQLite address; None for other stores."""
    return sqlite_file(uri)


def shown(uri: str) -> str:
    """The address as it may appear on a screen: without the password."""
    try:
        parts = urlsplit(uri)
        if parts.password is None:
            return uri
    except ValueError:
        return uri.partition("://")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Link to a run on a server; for a database, the command that opens the UI on it."""
    if is_server(uri):
        return f"{shown(uri)}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"lorahydra ui --uri {shlex.quote(shown(uri))}"
