"""`lorahydra export`: an adapter as a folder for others, alone or merged into its base model."""

from __future__ import annotations

from pathlib import Path

import click

from lorahydra.cli.completing import folders
from lorahydra.cli.sharing import uri_option
from lorahydra.config.schema import DTYPES

__all__ = ["export"]


@click.command(short_help="Write an adapter, or a merged model, to a folder.")
@click.argument("source", shell_complete=folders)
@click.option("--to", "target", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder.")
@click.option("--merged", is_flag=True, help="One model for transformers, with the adapter merged into its base.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Dtype of the weights.")
@click.option("--base", metavar="NAME", help="Where the base model is now: packaged name, folder or hub id.")
@uri_option
def export(source: str, target: Path, merged: bool, dtype: str, base: str | None, uri: str | None) -> None:
    """Write adapter SOURCE to a folder with a model card.

    SOURCE is a folder, the id of an MLflow run, models:/NAME@ALIAS, or the name of a study or registered model. The
    folder is one that PEFT loads, or with --merged one that transformers loads. With --dtype=auto a merged model has
    the precision in which the adapter was scored.
    """
    from lorahydra.adapters.find import find_adapter
    from lorahydra.utils.files import check_new

    check_new(target)
    with find_adapter(source, uri=uri, record=True) as adapter:
        # Imported here: torch takes seconds, but a typo should be reported at once.
        from lorahydra.adapters.export import export_adapter

        export_adapter(
            adapter.folder, target, merged=merged, dtype=dtype, base=base, run=adapter.run, study=adapter.study
        )
        kind = "merged model" if merged else "adapter"
        click.echo(f"{target}: {kind} of {adapter.name}; README.md says how to use it")
