"""`lorahydra push`: an adapter to the model hub, only on request."""

from __future__ import annotations

import click

from lorahydra.cli.completing import folders
from lorahydra.cli.sharing import uri_option

__all__ = ["push"]


@click.command(short_help="Push an adapter to the model hub.")
@click.argument("source", shell_complete=folders)
@click.argument("target", metavar="hub:OWNER/NAME")
@click.option("--public", is_flag=True, help="Everybody may see it; without this flag a new repository is private.")
@click.option("--base", metavar="OWNER/NAME", help="The base model on the hub, if it was trained on a copy.")
@uri_option
def push(source: str, target: str, public: bool, base: str | None, uri: str | None) -> None:
    """Push adapter SOURCE to a repository of the model hub, with a model card.

    SOURCE is a folder, the id of an MLflow run, models:/NAME@ALIAS, or the name of a study or registered model. The
    token is that of HF_TOKEN, or the one that `hf auth login` keeps.
    """
    from lorahydra.adapters.find import find_adapter
    from lorahydra.adapters.hub_push import push_adapter, repository

    repo = repository(target)
    with find_adapter(source, uri=uri, record=True) as adapter:
        pushed = push_adapter(adapter, repo, public=public, base=base)
        seen = "private" if pushed.private else "public"
        click.echo(f"{pushed.address}: adapter of {adapter.name}, {seen}")
