"""Compares llama.cpp's greedy answers from exported GGUF files with those of lorahydra.

    python benchmarks/llama_cpp.py outputs/demo/best --server path/to/llama-server
    python benchmarks/llama_cpp.py outputs/demo/best --limit 40 --dtype q8_0

Exports the adapter merged, and alone with its base model, starts llama.cpp's server on each, and asks it the first 20
prompts of the demo's test split (or those of `--prompts`, one a line) by its chat endpoint, with the system message of
the adapter. Prints how many answers are equal token by token, how many prompts have equal tokens, and how many answers
differ from those of the untuned model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorahydra import conversations, find_adapter, open_adapter
from lorahydra.adapters.gguf_export import export_gguf

DEMO = Path(__file__).resolve().parents[1] / "src" / "lorahydra" / "data" / "demo" / "test.jsonl"
SECONDS = 120


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="as `lorahydra export` takes it")
    parser.add_argument("--server", default=os.environ.get("LLAMA_CPP") or shutil.which("llama-server"))
    parser.add_argument("--prompts", type=Path, help="a file with one prompt a line")
    parser.add_argument("--count", type=int, default=20, help="number of prompts")
    parser.add_argument("--limit", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--dtype", default="float16", help="of the merged model and of the base model")
    chosen = parser.parse_args()
    if not chosen.server:
        parser.error("name llama.cpp's server with --server, LLAMA_CPP or PATH")
    prompts = read_prompts(chosen.prompts)[: chosen.count]
    with find_adapter(chosen.adapter) as found, tempfile.TemporaryDirectory() as place:
        with open_adapter(found.folder, device="cpu", dtype="float32") as model:
            asked = conversations(prompts)
            expected = model.answer_tokens(asked, max_new_tokens=chosen.limit)
            untuned = model.answer_tokens(asked, max_new_tokens=chosen.limit, tuned=False)
            ids = [model.prompt_ids(conversation) for conversation in asked]
            system = model.metadata.system_prompt
        changed = sum(map(list.__ne__, expected, untuned))
        print(f"{len(prompts)} prompts; the adapter changes {changed} answers")
        for merged in (True, False):
            folder = Path(place) / ("merged" if merged else "adapter")
            export_gguf(found.folder, folder, merged=merged, with_base=not merged, dtype=chosen.dtype)
            files = ["--model", str(folder / "model.gguf")] if merged else adapter_files(folder)
            with serving(chosen.server, files) as address:
                compare(address, prompts, system, expected, ids, chosen.limit, folder.name)


def read_prompts(file: Path | None) -> list[str]:
    """The prompts of a text file, or of the demo."""
    if file is not None:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    return [json.loads(line)["prompt"] for line in DEMO.read_text("utf-8").splitlines()]


def adapter_files(folder: Path) -> list[str]:
    """Arguments that load an adapter on its base model."""
    return ["--model", str(folder / "base.gguf"), "--lora", str(folder / "adapter.gguf")]


@contextmanager
def serving(server: str, files: list[str]) -> Iterator[str]:
    """The address of llama.cpp's server while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--host", "127.0.0.1", "--port", str(port), "--jinja", "--parallel", "1", "--ctx-size", "2048"]
    command = [server, *files, *settings, "--threads", "1", "--no-warmup"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(process, address)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait(process: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the server has loaded the model."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("llama.cpp's server does not load the exported files: run it by hand to see why")


def ask(address: str, path: str, **body: Any) -> Any:
    """The server's reply to a request."""
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as reply:
        return json.load(reply)


def compare(
    address: str,
    prompts: list[str],
    system: str | None,
    expected: list[list[int]],
    ids: list[list[int]],
    limit: int,
    name: str,
) -> None:
    """Ask the server, and print how many answers and prompts are equal."""
    equal = same_prompts = 0
    for prompt, answer, prompt_ids in zip(prompts, expected, ids, strict=True):
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = ask(address, "/apply-template", messages=messages)["prompt"]
        same_prompts += ask(address, "/tokenize", content=text, add_special=True)["tokens"] == prompt_ids
        reply = ask(
            address,
            "/v1/chat/completions",
            messages=messages,
            temperature=0,
            max_tokens=limit,
            return_tokens=True,
            verbose=True,
        )
        tokens = reply["__verbose"]["tokens"]
        # The token that ended the answer is not part of it.
        ended = reply["choices"][0]["finish_reason"] == "stop"
        equal += (tokens[:-1] if ended and len(tokens) > len(answer) else tokens) == answer
    print(f"{name}: {equal} of {len(prompts)} answers equal, {same_prompts} prompts equal")


if __name__ == "__main__":
    main()
