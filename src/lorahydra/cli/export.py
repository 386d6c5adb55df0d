"""`lorahydra export`: an adapter as a folder for others, alone or merged into its base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from lorahydra.cli.completing import folders
from lorahydra.cli.sharing import uri_option
from lorahydra.config.schema import DTYPES
from lorahydra.errors import ConfigError

__all__ = ["export"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
PROGRAMS = {"gguf": "llama.cpp", "ollama": "Ollama", "vllm": "vLLM"}
"""The program that each kind of export is for."""


def _folder_option(kind: str) -> Callable[[FunctionT], FunctionT]:
    """`--gguf` and its like: alone, or followed by the folder."""
    return click.option(
        f"--{kind}",
        is_flag=False,
        flag_value="",
        metavar="[DIR]",
        help=f"For {PROGRAMS[kind]}, into DIR or the folder of --to.",
    )


@click.command(short_help="Write an adapter, or a merged model, to a folder.")
@click.argument("source", shell_complete=folders)
@click.option("--to", "target", type=click.Path(path_type=Path), metavar="DIR", help="A new folder.")
@click.option("--merged", is_flag=True, help="One model, with the adapter merged into its base.")
@_folder_option("gguf")
@_folder_option("ollama")
@_folder_option("vllm")
@click.option("--with-base", is_flag=True, help="With --gguf: write the base model beside the adapter.")
@click.option("--from", "from_model", metavar="NAME", help="With --ollama: name of the base model in Ollama.")
@click.option(
    "--dtype", type=click.Choice([*DTYPES, "q8_0"]), default="auto", show_default=True, help="Dtype of the weights."
)
@click.option("--base", metavar="NAME", help="Where the base model is now: packaged name, folder or hub id.")
@uri_option
def export(
    source: str,
    target: Path | None,
    merged: bool,
    gguf: str | None,
    ollama: str | None,
    vllm: str | None,
    with_base: bool,
    from_model: str | None,
    dtype: str,
    base: str | None,
    uri: str | None,
) -> None:
    """Write adapter SOURCE to a folder with a model card.

    SOURCE is a folder, the id of an MLflow run, models:/NAME@ALIAS, or the name of a study or registered model. The
    folder is one that PEFT loads, or with --merged one that transformers loads; with --gguf, --ollama or --vllm it is
    for that program. With --dtype=auto a merged model has the precision of scoring, and float16 as GGUF.
    """
    from lorahydra.adapters.find import find_adapter
    from lorahydra.utils.files import check_new

    kind, folder = _kind_and_folder(target, {"gguf": gguf, "ollama": ollama, "vllm": vllm})
    more = _options(kind, merged=merged, with_base=with_base, from_model=from_model, dtype=dtype)
    check_new(folder)
    with find_adapter(source, uri=uri, record=True) as adapter:
        _exporter(kind)(
            adapter.folder,
            folder,
            merged=merged,
            dtype=dtype,
            base=base,
            run=adapter.run,
            study=adapter.study,
            **more,
        )
        what = "merged model" if merged else "adapter"
        program = f" for {PROGRAMS[kind]}" if kind else ""
        click.echo(f"{folder}: {what} of {adapter.name}{program}; README.md says how to use it")


def _kind_and_folder(target: Path | None, kinds: dict[str, str | None]) -> tuple[str | None, Path]:
    chosen = {kind: folder for kind, folder in kinds.items() if folder is not None}
    if len(chosen) > 1:
        raise ConfigError(f"choose one of {', '.join(f'--{kind}' for kind in chosen)}, or run the command for each")
    [(kind, folder)] = chosen.items() or [(None, "")]
    if folder and target is not None and Path(folder) != target:
        raise ConfigError(f"--{kind} names the folder {folder}, and --to names {target}: give one of them")
    if not folder and target is None:
        raise ConfigError("name a new folder with --to DIR")
    return kind, Path(folder) if folder else target or Path()


def _options(kind: str | None, *, merged: bool, with_base: bool, from_model: str | None, dtype: str) -> dict[str, Any]:
    """Options of one kind of export, which the others do not take."""
    if with_base and (kind != "gguf" or merged):
        raise ConfigError("--with-base is for --gguf without --merged")
    if from_model is not None and (kind != "ollama" or merged):
        raise ConfigError("--from is for --ollama without --merged")
    if dtype == "q8_0" and kind not in ("gguf", "ollama"):
        raise ConfigError("--dtype=q8_0 is for --gguf and --ollama")
    own: dict[str | None, dict[str, Any]] = {"gguf": {"with_base": with_base}, "ollama": {"from_model": from_model}}
    return own.get(kind, {})


def _exporter(kind: str | None) -> Any:
    # Imported here: torch takes seconds, but a typo should be reported at once.
    if kind == "gguf":
        from lorahydra.adapters.gguf_export import export_gguf

        return export_gguf
    if kind == "ollama":
        from lorahydra.adapters.ollama import export_ollama

        return export_ollama
    if kind == "vllm":
        from lorahydra.adapters.vllm import export_vllm

        return export_vllm
    from lorahydra.adapters.export import export_adapter

    return export_adapter
