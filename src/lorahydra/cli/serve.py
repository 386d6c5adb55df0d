"""`lorahydra serve`: the HTTP API and the web page."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import click

from lorahydra.errors import ConfigError
from lorahydra.utils.databases import absolute, checked_url, has_password, shown

__all__ = ["serve"]

UNITS = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
STUDIES = "postgresql://USER@HOST/NAME or sqlite:///studies.db"
PACKAGES = ("fastapi", "uvicorn", "jinja2", "python_multipart", "itsdangerous")


@click.command(short_help="Serve the HTTP API and the web page.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Any address but loopback needs LORAHYDRA_API_TOKEN."
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lorahydra-service"),
    show_default=True,
    help="Holds the database, datasets, fine-tunes and MLflow's store.",
)
@click.option(
    "--storage", metavar="URL", help="Database URL, for example postgresql://… [default: service.db in the folder]."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Number of studies that run at the same time.",
)
@click.option("--upload-limit", default="1GiB", show_default=True, metavar="SIZE", help="Largest size of a dataset.")
@click.option(
    "--keep-days",
    type=click.IntRange(1, 36500),
    metavar="N",
    help="Delete fine-tunes, and datasets that none uses, N days after their end [default: keep them].",
)
@click.option(
    "--launcher",
    metavar="NAME",
    help="Where the trials of a study run: a name of the config group hydra/launcher, such as submitit_slurm "
    "[default: one after another on this machine].",
)
@click.option("--studies", metavar="URL", help="Database of the studies [default: studies.db in the folder].")
@click.option("--tracking-uri", metavar="URL", help="MLflow's store [default: mlflow.db in the folder].")
@click.option("--mlflow-port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--no-mlflow", is_flag=True, help="Do not start MLflow's UI.")
@click.option("--mlflow-url", metavar="URL", help="Where browsers find MLflow's UI, if not at --mlflow-port.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder whose subfolders can be chosen as base models [default: models in the folder].",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Hydra override for every study.")
@click.option(
    "--allow-host",
    "names",
    multiple=True,
    metavar="NAME",
    help="Another host name by which browsers may address this server.",
)
def serve(
    host: str,
    port: int,
    folder: Path,
    storage: str | None,
    workers: int,
    upload_limit: str,
    keep_days: int | None,
    launcher: str | None,
    studies: str | None,
    tracking_uri: str | None,
    mlflow_port: int,
    no_mlflow: bool,
    mlflow_url: str | None,
    models: Path | None,
    overrides: tuple[str, ...],
    names: tuple[str, ...],
) -> None:
    """Serve the API and the web page, and run the studies that they start, until Ctrl-C.

    Running studies then continue without the server, which finds them again when it is started the next time.
    """
    _require_packages()
    from lorahydra.service.access import TOKEN_VARIABLE, Access
    from lorahydra.service.server import serve as run
    from lorahydra.service.service import ServiceConfig
    from lorahydra.tracking.address import resolve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = ServiceConfig(
        folder=folder,
        storage=storage,
        workers=workers,
        upload_limit=_bytes(upload_limit),
        retention_days=keep_days,
        models_folder=None if models is None else models.absolute(),
        overrides=overrides if launcher is None else (*overrides, f"hydra/launcher={launcher}"),
        studies=None if studies is None else absolute(checked_url(_plain("--studies", studies), "--studies", STUDIES)),
        tracking_uri=None
        if tracking_uri is None
        else resolve(_plain("--tracking-uri", tracking_uri), "--tracking-uri"),
        mlflow_url=None if mlflow_url is None else _web_address(mlflow_url),
    )
    # Taken out of the environment, because studies and MLflow's UI have no use for it.
    access = Access(host=host, token=os.environ.pop(TOKEN_VARIABLE, None), names=names)
    run(config, access, port, None if no_mlflow else mlflow_port)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"lorahydra serve needs {', '.join(missing)}: pip install 'lorahydra[service]'")


def _bytes(text: str) -> int:
    """Read `500MB` or `1GiB`."""
    size = re.fullmatch(r"(\d{1,12})\s*([a-z]*)", text.strip().lower())
    if size is None or size[2] not in UNITS or not int(size[1]):
        raise ConfigError(f"--upload-limit {text} is not a size: write for example 500MB or 1GiB")
    return int(size[1]) * UNITS[size[2]]


def _plain(option: str, address: str) -> str:
    """Refuse a password in an address that workers get, and that launchers write to files."""
    if has_password(address):
        raise ConfigError(
            f"{option} {shown(address)} has a password, which would end up in files and logs: put that of PostgreSQL "
            "into ~/.pgpass, and that of an MLflow server into MLFLOW_TRACKING_PASSWORD"
        )
    return _without_token(option, address)


def _without_token(option: str, address: str) -> str:
    """Refuse parts of a web server's address that may be a token, and do not show them: pages link to the address."""
    if re.match(r"\s*https?://([^/?#]*@|[^?#]*[?#])", address, re.IGNORECASE):
        raise ConfigError(
            f"{option} has a user before its host, or a part after ? or #, which may be secret and would be in every "
            "link: give https://HOST/PATH only, and a token of an MLflow server in MLFLOW_TRACKING_TOKEN"
        )
    return address


def _web_address(text: str) -> str:
    """Check an address that pages link to."""
    _without_token("--mlflow-url", text)
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(
            f"--mlflow-url {text} is not the address of a web page: write for example https://mlflow.example.org"
        )
    return text.rstrip("/")
