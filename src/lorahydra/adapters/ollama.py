"""Writes an adapter for Ollama: GGUF files, and a Modelfile that names them.

```python
export_ollama(adapter.folder, Path("my-ollama"), merged=True)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorahydra.adapters.export_folder import ExportFolder, export_folder
from lorahydra.adapters.gguf_export import ADAPTER_FILE, BASE_FILE, MODEL_FILE, adds_bos, write_gguf
from lorahydra.adapters.go_template import derive_template
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.errors import ModelError, UserError
from lorahydra.modeling.base import load_tokenizer
from lorahydra.tracking import RecordedRun

__all__ = ["export_ollama", "modelfile"]

MODELFILE = "Modelfile"
QUOTES = '"""'


def export_ollama(
    folder: Path,
    target: Path,
    *,
    merged: bool = False,
    from_model: str | None = None,
    dtype: str = "auto",
    base: str | None = None,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
) -> None:
    """Write an adapter to `target` for `ollama create`, as a whole or not at all.

    Args:
        folder: The adapter, in PEFT's format.
        target: A new or empty folder.
        merged: As one model, merged into a copy of its base; otherwise the adapter beside the base model.
        from_model: Ollama's name of the base model, instead of a copy of its weights.
        dtype: Dtype of the written model's matrices; `auto` is float16.
        base: The place of the base model, if it is not where it was in training.
        run: The trial's run, for the model card.
        study: The run of the study that it won, for the model card.

    Raises:
        ConfigError: An adapter cannot have this dtype.
        ModelError: The adapter, its base model or its chat template cannot be used in Ollama.
        ServiceError: The base model is on the hub, which cannot be reached.
        OutputError: `target` is not empty, or cannot be written.
    """
    whole = from_model is None
    with export_folder(folder, target, reads_weights=whole, base=base, run=run, study=study) as export:
        template, stop = _template(export)
        weights = MODEL_FILE if merged else BASE_FILE
        source = f"./{weights}" if from_model is None else from_model
        text = modelfile(
            source,
            None if merged else f"./{ADAPTER_FILE}",
            template,
            export.metadata.system_prompt,
            stop,
        )
        # Before weights are read, which takes long.
        (export.folder / MODELFILE).write_text(text, "utf-8")
        written, _ = write_gguf(export, merged=merged, with_base=whole and not merged, dtype=dtype)
        name = export.name.lower()
        use = f"With Ollama, in this folder:\n\n```sh\nollama create {name} -f {MODELFILE}\nollama run {name}\n```"
        export.write_card(dtype=written, merged=merged, use=use, library="gguf")


def modelfile(source: str, adapter: str | None, template: str, system: str | None, stop: Sequence[str]) -> str:
    """The text of a Modelfile that answers as a trial does: the most likely token at every step.

    Args:
        source: Path of the model's GGUF file, or the name of a model in Ollama.
        adapter: Path of the adapter's GGUF file.
        template: Template in Go.
        system: System message.
        stop: Texts that end an answer.

    Raises:
        UserError: A text cannot be written in a Modelfile.
    """
    if any(letter.isspace() for letter in source) or not source:
        raise UserError(f"{source!r} is not a name of a model in Ollama: give one without spaces, such as qwen3:0.6b")
    lines = [f"FROM {source}"]
    lines += [f"ADAPTER {adapter}"] if adapter else []
    lines += [f"TEMPLATE {_quoted(template)}"]
    lines += [f"SYSTEM {_quoted(system)}"] if system else []
    # Ollama's default penalty would change answers that repeat words of the prompt.
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if QUOTES in text:
        raise ModelError(f"a Modelfile cannot hold three quotation marks in a row, which are in: {text[:60]!r}")
    return f"{QUOTES}{text}{QUOTES}"


def _template(export: ExportFolder) -> tuple[str, list[str]]:
    """The template in Go, and the texts that end an answer."""
    model = export.loaded.model
    tokenizer = load_tokenizer(model)
    # An empty system message belongs before every conversation that has none, another one is the Modelfile's.
    system = "" if export.metadata.system_prompt == "" else None
    chat = ChatFormat(tokenizer, chat_template=model.chat_template, system_prompt=system)
    leave_out = str(tokenizer.bos_token) if adds_bos(chat, tokenizer) else ""
    ends = tokenizer.convert_ids_to_tokens(sorted(chat.end_tokens))
    return derive_template(chat, leave_out), [*ends, *chat.end_texts]
